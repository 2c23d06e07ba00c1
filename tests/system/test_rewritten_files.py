"""Tar files and tables of videos, written again after they were planned: no clip gets other bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache.corpus.stamps import stamp_sources
from tests.tools.caches import make_config, printed_by, samples_of
from tests.tools.http_files import serve
from tests.tools.planned import planned_from
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 fixtures
from tests.tools.tars import write_tar
from tests.tools.videos import moving_pattern, write_video

#: Videos are as long as one another, so that one is exactly where another one was.
VIDEO_BYTES = 8000
BAD = b"<html>" + bytes(VIDEO_BYTES - 6)


@pytest.fixture(scope="module", name="videos")
def videos_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small videos, filled up with a box that players skip."""
    found, path = {}, tmp_path_factory.mktemp("videos") / "v.mp4"
    for seed, name in enumerate("abc"):
        data = write_video(path, moving_pattern(5, 64, 96, seed=seed)).read_bytes()
        rest = VIDEO_BYTES - len(data)
        found[name] = data + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8)
    return found


class Lab:
    """A corpus in one file, on storage of some kind, and its cache."""

    def __init__(self, folder: Path, form: str, server: str | None, s3: S3 | None) -> None:
        self.cache, self._s3 = folder / "cache", s3
        self._path = folder / f"t.{form}"
        self._url = f"{server or (s3.url if s3 else folder)}/t.{form}"
        corpus: dict[str, Any] = {"source": self._url}
        if s3:
            corpus["storage_options"] = s3.options
        if form == "parquet":
            corpus["columns"] = {"video": "video", "key": "id"}
        self.config = make_config(folder, folder, str(self.cache), corpus=corpus)
        self._options = [f"corpus.storage_options={s3.options}"] if s3 else []

    def resume(self, option: str, status: int = 0) -> str:
        return printed_by("resume", self.cache, option, *self._options, status=status)

    @property
    def has_stamps(self) -> bool:
        """Whether its storage says when the file was changed, or gives an ETag."""
        (stamp,) = stamp_sources([self._url], self._s3.options if self._s3 else None)
        return stamp is not None

    def write(self, videos: Mapping[str, bytes]) -> None:
        """Write the file with these videos, in their order."""
        if self._path.suffix == ".tar":
            write_tar(self._path, [(f"{name}.mp4", data) for name, data in videos.items()])
        else:
            names, data = zip(*videos.items(), strict=True)
            table = pa.table({"id": names, "video": pa.array(data, pa.binary())})
            pq.write_table(table, self._path, row_group_size=2)
        if self._s3:
            self._s3.put(self._path.name, self._path.read_bytes())

    def bits(self) -> dict[str, bytes]:
        """The latents of clips by the names of their videos."""
        return {key.removeprefix("t.tar/")[0]: bits for key, bits in samples_of(self.cache).items()}

    def reasons(self) -> dict[str, str | None]:
        rows = latentcache.open_cache(str(self.cache)).table(["key", "reason"]).to_pylist()
        return {row["key"].removeprefix("t.tar/")[0]: row["reason"] for row in rows}


@pytest.fixture(
    name="lab",
    params=[
        pytest.param(f"{form} {storage}", marks=[pytest.mark.long] if storage != "files" else [])
        for form in ("tar", "parquet")
        for storage in ("files", "http", "tags", "s3")
    ],
)
def lab_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    form, storage = request.param.split()
    with contextlib.ExitStack() as stack:
        server, s3 = None, None
        if storage in ("http", "tags"):
            serving = stack.enter_context(serve(tmp_path))
            server, serving.has_tags = serving.url, storage == "tags"
        elif storage == "s3":
            s3 = request.getfixturevalue("s3")
        yield Lab(tmp_path, form, server, s3)


@pytest.fixture(scope="module", name="expected")
def expected_fixture(
    tmp_path_factory: pytest.TempPathFactory, videos: dict[str, bytes]
) -> dict[str, bytes]:
    """The latents of each video."""
    folder = tmp_path_factory.mktemp("expected")
    for name, data in videos.items():
        (folder / f"{name}.mp4").write_bytes(data)
    printed_by("precompute", make_config(folder, folder, str(folder / "cache")))
    return {key[0]: bits for key, bits in samples_of(folder / "cache").items()}


def test_a_planned_part_of_a_file_that_was_written_again_fails_as_changed(
    lab: Lab, videos: dict[str, bytes], expected: dict[str, bytes]
) -> None:
    """Whether it is decoded for the first time or tried again; and works once the file is as planned."""
    lab.write(videos)
    planned_from(lab.config)
    others = {name: videos[name] for name in "bac"}
    lab.write(others)
    lab.resume("--skip-changed", status=3)
    assert lab.reasons() == {"a": "source_changed", "b": "source_changed", "c": None}
    out = lab.resume("--retry-failed", status=3)
    assert "0 clips are planned again" in out
    assert "kept     2 sources in tar files or tables that were written again" in out
    assert lab.bits() == {"c": expected["c"]}
    lab.write(videos)
    out = lab.resume("--retry-failed")
    assert "2 clips are planned again" in out
    assert lab.bits() == expected


def test_a_repaired_part_of_a_file_in_another_order_is_found_by_its_name(
    lab: Lab, videos: dict[str, bytes], expected: dict[str, bytes]
) -> None:
    lab.write({**videos, "a": BAD})
    printed_by("precompute", lab.config, status=3)
    assert "written again" not in lab.resume("--retry-failed", status=3)
    lab.write({name: videos[name] for name in "bac"})
    out = lab.resume("--retry-failed", status=3)
    which = "that were" if lab.has_stamps else "that may have been"
    assert f"kept     1 sources in tar files or tables {which} written again" in out
    assert lab.reasons()["a"] == "unreadable"
    out = printed_by("precompute", lab.config)
    assert "repaired 1 sources" in out
    assert lab.bits() == expected
