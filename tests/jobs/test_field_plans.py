"""Fields that a corpus's columns do not allow: every job that plans says so before it writes anything."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import latentcache
from latentcache.core.dtypes import as_numpy
from tests.tools.caches import make_config, read_files, run_inline
from tests.tools.fields import text_field, write_fields
from tests.tools.videos import moving_pattern

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

ARRAY = {"kind": "array", "column": "file", "shape": [2], "dtype": "float32"}
JOINT = {"kind": "joint", "family": "hunyuan_video_i2v", "model": "/m", "interleave": 4}


class Corpora:
    """Corpora of images in folders, each image with an array's file; and the caches of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"

    def image(self, number: int) -> bytes:
        data = io.BytesIO()
        Image.fromarray(moving_pattern(1, 32, 32, seed=number)[0]).save(data, "png")
        return data.getvalue()

    def write(self, place: str, *numbers: int) -> Path:
        """Write the arrays of some images in a folder; returns it."""
        folder = self.folder / place
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            np.save(folder / f"{number}.npy", np.full(2, number, np.float32))
        return folder

    def table(self, name: str, *numbers: int, files: Path | None = None, **columns: Any) -> None:
        """Write a table of images and the paths of their arrays, below `files` or beside the table."""
        path = self.folder / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        paths = [f"{files}/{n}.npy" if files else f"{n}.npy" for n in numbers]
        images = [self.image(number) for number in numbers]
        keys = [str(number) for number in numbers]
        values = {"key": keys, "image": images, "file": paths, **columns}
        pq.write_table(pa.table(values), path)

    def tar(self, name: str, *numbers: int) -> None:
        with tarfile.open(self.folder / f"{name}.tar", "w") as tar:
            for n in numbers:
                text = json.dumps({"file": f"{n}.npy"}).encode()
                for suffix, data in (("png", self.image(n)), ("json", text)):
                    info = tarfile.TarInfo(f"{n}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def config(
        self, source: str, fields: dict[str, Any], *keep: str, tars: bool = False, **corpus: Any
    ) -> Path:
        columns = {} if tars else {"columns": {"image": "image", "key": "key"}}
        return make_config(
            self.folder,
            self.folder,
            str(self.cache),
            corpus={
                "source": f"{self.folder}/{source}",
                "keep": ["file", *keep],
                **columns,
                **corpus,
            },
            clips={"frames": 1, "size": [32, 32]},
            cache={"shard_clips": 2},
            fields=fields,
        )

    def values(self, name: str = "f") -> list[int]:
        """Return the number that a field has of each image."""
        cache = latentcache.open_cache(str(self.cache))
        numbers = range(len(cache))
        return sorted(int(as_numpy(cache[n][name]).flat[0]) for n in numbers)


@pytest.fixture(name="corpora")
def corpora_fixture(tmp_path: Path) -> Corpora:
    return Corpora(tmp_path)


PLANNING = [("precompute",), ("precompute", "--dry-run"), ("estimate",)]


@pytest.mark.parametrize("job", PLANNING, ids=" ".join)
@pytest.mark.parametrize(
    ("field", "why"),
    [
        (text_field(column="txets", max_choices=1), "no such column. Did you mean 'texts'?"),
        (text_field(column="txets", missing="empty"), "no such column. Did you mean 'texts'?"),
        (text_field(column=["texts", "txets"], max_choices=2), "column 'txets': the clips"),
        (text_field(column="score", max_choices=1), "column 'score' is int64"),
        (text_field(column="actions", max_choices=1), "column 'actions': the clips"),
        ({**JOINT, "images": "first", "column": "txets", "max_choices": 1}, "'txets': the clips"),
        ({**JOINT, "images": ["score"], "column": "texts"}, "column 'score' is int64"),
        ({"kind": "raw", "column": "flie"}, "Did you mean 'file'?"),
        ({"kind": "visual", "column": "score"}, "column 'score' is int64"),
        ({"kind": "visual", "of": "masked", "masks": "flie"}, "Did you mean 'file'?"),
        ({"kind": "visual", "of": "vace", "masks": "file", "column": "no"}, "column 'no': the"),
        ({**ARRAY, "column": "flie"}, "Did you mean 'file'?"),
        ({**ARRAY, "column": "score", "folder": "/x"}, "column 'score' is int64"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:60],
)
def test_a_wrong_column_is_refused_before_anything_is_written(
    corpora: Corpora, job: tuple[str, ...], field: dict[str, Any], why: str
) -> None:
    corpora.write("t", 1, 2)
    columns = {"texts": ["a", "b"], "score": [1, 2], "actions": [[1.0], [2.0]]}
    corpora.table("t/t", 1, 2, **columns)
    config = corpora.config("t", {"x": field}, "texts", "score", per_frame=["actions"])
    status, printed = run_inline(job[0], config, *job[1:])
    assert (status, why in printed, "fields.x" in printed) == (2, True, True), printed
    assert not corpora.cache.exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_add_field_refuses_a_wrong_column_and_leaves_the_name_free(
    corpora: Corpora, options: list[str]
) -> None:
    corpora.write("t", 1, 2)
    corpora.table("t/t", 1, 2, texts=["a", "b"])
    assert run_inline("precompute", corpora.config("t", {}, "texts"))[0] == 0
    before = read_files(corpora.cache)
    fields = write_fields(corpora.folder, x=text_field(column="txets", max_choices=1))
    job = ["add_field", corpora.cache, fields, *options, "run.runner=local"]
    status, printed = run_inline(*job)
    assert (status, "Did you mean 'texts'?" in printed) == (2, True), printed
    assert read_files(corpora.cache) == before


def test_a_field_reads_a_column_that_only_the_cache_still_has(corpora: Corpora) -> None:
    corpora.write("t", 1, 2, 3)
    corpora.table("t/t", 1, 2, texts=["a", "b"])
    assert run_inline("precompute", corpora.config("t", {}, "texts"))[0] == 0
    corpora.table("t/t", 1, 2, 3)
    config = corpora.config("t", {"x": text_field(column="texts", max_choices=1)})
    status, printed = run_inline("precompute", config)
    assert (status, "1 x no_caption" in printed) == (3, True), printed


@pytest.mark.parametrize("source", ["t", "t/", "t/*.parquet", "t/a.parquet"])
def test_files_of_tables_lie_beside_these(corpora: Corpora, source: str) -> None:
    corpora.write("t", 1, 2)
    np.save(corpora.folder / "1.npy", np.full(2, -1, np.float32))
    np.save(corpora.folder / "2.npy", np.full(2, -1, np.float32))
    corpora.table("t/a", 1, 2)
    status, printed = run_inline("precompute", corpora.config(source, {"f": ARRAY}))
    assert status == 0, printed
    assert f"relative paths start at {corpora.folder}/t\n" in printed
    assert corpora.values() == [1, 2]


@pytest.mark.parametrize("source", ["t", "t/", "t/*.tar", "t/0.tar"])
def test_files_of_tar_members_lie_beside_the_tar_file(corpora: Corpora, source: str) -> None:
    corpora.write("t", 1, 2)
    corpora.tar("t/0", 1, 2)
    status, printed = run_inline("precompute", corpora.config(source, {"f": ARRAY}, tars=True))
    assert status == 0, printed
    assert corpora.values() == [1, 2]


@pytest.mark.parametrize("job", PLANNING, ids=" ".join)
@pytest.mark.parametrize("source", ["*/t.parquet", "", "[ab]/*.parquet"])
def test_relative_paths_of_tables_in_several_folders_need_a_folder(
    corpora: Corpora, job: tuple[str, ...], source: str
) -> None:
    for number, place in enumerate("ab"):
        corpora.write(place, number)
        corpora.table(f"{place}/t", number)
    status, printed = run_inline(job[0], corpora.config(source, {"f": ARRAY}), *job[1:])
    assert (status, "fields.f.folder: file has relative paths" in printed) == (2, True), printed
    assert not corpora.cache.exists()
    field = {**ARRAY, "folder": str(corpora.write("c", 0, 1))}
    status, printed = run_inline(job[0], corpora.config(source, {"f": field}), *job[1:])
    assert status == 0, printed


def test_absolute_paths_of_tables_in_several_folders_need_none(corpora: Corpora) -> None:
    for number, place in enumerate("ab"):
        corpora.write("files", number)
        corpora.table(f"{place}/t", number, files=corpora.folder / "files")
    status, printed = run_inline("precompute", corpora.config("*/t.parquet", {"f": ARRAY}))
    assert status == 0, printed
    assert corpora.values() == [0, 1]


def test_a_field_of_known_clips_in_several_folders_is_refused_before_it_is_made(
    corpora: Corpora,
) -> None:
    for number, place in enumerate("ab"):
        corpora.write(place, number)
        corpora.table(f"{place}/t", number)
    assert run_inline("precompute", corpora.config("*/t.parquet", {}))[0] == 0
    before = read_files(corpora.cache)
    fields = write_fields(corpora.folder, f=ARRAY)
    config = corpora.config("*/t.parquet", {"f": ARRAY})
    jobs = [
        ("add_field", corpora.cache, fields, "run.runner=local"),
        ("precompute", config, "--dry-run"),
        ("precompute", config),
    ]
    for job in jobs:
        status, printed = run_inline(*job)
        assert (status, "nothing says where these start" in printed) == (2, True), printed
        assert "in the field's settings, as folder: PLACE" in printed
        assert read_files(corpora.cache) == before


def test_changed_paths_in_several_folders_are_refused_before_anything_is_written(
    corpora: Corpora,
) -> None:
    for number, place in enumerate("ab"):
        corpora.write(place, number, number + 10)
        corpora.table(f"{place}/t", number)
        assert run_inline("precompute", corpora.config(place, {"f": ARRAY}))[0] == 0
    corpora.table("b/t", 1, file=["./1.npy"])
    before = read_files(corpora.cache)
    for options in (["--dry-run"], []):
        config = corpora.config("[ab]/*.parquet", {"f": ARRAY})
        status, printed = run_inline("precompute", config, *options)
        assert (status, "nothing says where these start" in printed) == (2, True), printed
        assert read_files(corpora.cache) == before
    status, printed = run_inline("precompute", corpora.config("b", {"f": ARRAY}))
    assert status == 0, printed


def test_estimate_takes_columns_that_only_the_cache_has(corpora: Corpora) -> None:
    corpora.write("t", 1, 2)
    lists = {"caption": [["a", "b"], ["c", "d"]], "texts": ["a", "b"]}
    columns = {"columns": {"image": "image", "key": "key", "caption": "caption"}}
    corpora.table("t/t", 1, 2, **lists)
    status, printed = run_inline("precompute", corpora.config("t", {}, "texts", **columns))
    assert status == 0, printed
    corpora.table("t/t", 1, 2, caption=["a", "b"])
    fields = {name: text_field(column=name) for name in ("captions", "texts")}
    named = {f"x_{name}": field for name, field in fields.items()}
    status, printed = run_inline("estimate", corpora.config("t", named, **columns))
    assert status == 0, printed
