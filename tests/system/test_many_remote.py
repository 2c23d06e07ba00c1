"""Very many remote videos on an S3 server that counts bytes: how many of each object are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentcache
from benchmarks.capped_s3 import Running, running
from latentcache.core.records import Clip
from latentcache.decoders.pool import DecodePool
from tests.tools.caches import bits_of, make_config, run_inline
from tests.tools.long_videos import GOP, RATE, write_long

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

#: The files of which the others are copies by name, and options of FFmpeg's writer.
KINDS: dict[str, dict[str, str]] = {
    "head.mp4": {"movflags": "faststart"},
    "tail.mp4": {},
    "cues.mkv": {},
}
MAX_PROBE_BYTES = 1 << 20
FPS, CLIP_S, GROUP_S = 16, 5, GOP / RATE


@dataclass(frozen=True)
class Bucket:
    """A bucket whose objects are links to a few files of `seconds`. names: of the objects."""

    folder: Path
    server: Running
    names: list[str]
    seconds: int

    @property
    def options(self) -> dict[str, Any]:
        client = {"endpoint_url": self.server.endpoint, "region_name": "us-east-1"}
        return {"key": "k", "secret": "s", "client_kwargs": client}

    def url(self, name: str) -> str:
        return f"s3://{self.folder.name}/{name}"

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def sent(self, name: str) -> int:
        return self.server.bytes_of()[f"{self.folder.name}/{name}"]


@pytest.fixture(name="bucket")
def bucket_fixture(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """A bucket of so many objects of so many seconds; what is fetched is kept in the test's own folder."""
    number, seconds = request.param
    folder, kinds, temporary = (tmp_path / name for name in ("s3/bucket", "kinds", "temporary"))
    for each in (folder, kinds, temporary):
        each.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    for noise, (name, container) in enumerate(KINDS.items(), 64):
        path = kinds / name
        options: dict[str, Any] = {"size": (72, 128), "sound": False, "preset": "ultrafast"}
        write_long(path, seconds, noise=noise, container=container, **options)
    names = [f"{n:04d}-{list(KINDS)[n % len(KINDS)]}" for n in range(number)]
    for name in names:
        (folder / name).symlink_to(kinds / name.partition("-")[2])
    with running(folder.parent, rate=None) as server:
        yield Bucket(folder, server, names, seconds)


def pool_of(bucket: Bucket) -> DecodePool:
    """Decoding processes as a run has them whose clips go by time and are a part of their files."""
    return DecodePool(
        num_processes=2,
        num_buffers=2,
        timeout_s=120,
        storage_options=bucket.options,
        source_cache_bytes=1 << 30,
        by_ranges=True,
        by_time=True,
    )


@pytest.mark.parametrize(
    "bucket", [(20, 60), pytest.param((1000, 600), marks=pytest.mark.long)], indirect=True
)
def test_many_long_videos_are_probed_by_a_part_of_each(bucket: Bucket) -> None:
    with pool_of(bucket) as decoders:
        probes = [decoders.probe(bucket.url(name), "video") for name in bucket.names]
        frames = {probe.result()["frames"] for probe in probes}
    assert frames == {bucket.seconds * RATE}
    of_each = bucket.server.bytes_of()
    read = {name: of_each[f"{bucket.folder.name}/{name}"] for name in bucket.names}
    print(f"of {len(read)} files, probing read {max(read.values()) >> 10} KiB of one at most")
    for name in bucket.names:
        assert 0 < read[name] <= MAX_PROBE_BYTES < bucket.size(name) / 2, name


@pytest.mark.long
@pytest.mark.parametrize("bucket", [(36, 600)], indirect=True)
def test_clips_of_long_videos_read_about_their_own_bytes(bucket: Bucket) -> None:
    """And the pictures since the key frame before, without which none of its own can be decoded."""
    ratios = []
    with pool_of(bucket) as decoders:
        for n, name in enumerate(bucket.names):
            identity = decoders.probe(bucket.url(name), "video").result()["identity"]
            start, before = 271 * n, bucket.sent(name)  # everywhere between two key frames
            clip = Clip(
                key=name, source=name, url=bucket.url(name), kind="video", identity=identity,
                start=start, frames=FPS * CLIP_S, fps=float(FPS), height=36, width=64,
            )  # fmt: skip
            decoders.decode(clip).result().release()
            ratio = bucket.seconds / CLIP_S * (bucket.sent(name) - before) / bucket.size(name)
            print(f"{name}, from {start / FPS:.1f} s: {ratio:.2f} times the clip's own bytes")
            ratios.append(ratio)
            assert ratio <= 1.5 * (1 + start / FPS % GROUP_S / CLIP_S), name
    assert np.mean(ratios) <= 1.5


@pytest.mark.long
@pytest.mark.parametrize("bucket", [(50, 60)], indirect=True)
def test_files_that_are_wanted_whole_are_fetched_once(bucket: Bucket, tmp_path: Path) -> None:
    """By all processes of a machine together, in probing and decoding together."""
    caches = []
    remote = {"source": f"s3://{bucket.folder.name}", "storage_options": bucket.options}
    for number, corpus in enumerate([{"source": str(bucket.folder)}, remote]):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        config = make_config(
            folder, Path("corpus"), str(folder / "cache"), corpus=corpus,
            clips={"size": [32, 64], "frames": CLIP_S * FPS + 1, "fps": FPS, "select": "all"},
            run={"decode_processes": 2},
        )  # fmt: skip
        status, printed = run_inline("precompute", config)
        assert status == 0, printed
        caches.append(bits_of(latentcache.open_cache(folder / "cache")))
    assert caches[0] == caches[1]
    of_each = bucket.server.bytes_of()
    for name in bucket.names:
        assert of_each[f"{bucket.folder.name}/{name}"] == bucket.size(name), name
