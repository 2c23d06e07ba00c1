"""Latents and fields of frames from one decode: counted, and bit for bit what each by itself gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache.decoders.pool import DecodePool
from latentcache.running import long_clips
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    make_config,
    read_files,
    run_inline,
    samples_of,
    start_job,
)
from tests.tools.encoders.masked_fault import FAULT
from tests.tools.fields import write_fields
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.slow
FRAMES, HEIGHT, WIDTH = 5, 32, 48
#: Fields that need no model.
PLAIN: dict[str, dict[str, Any]] = {
    "i2v": {"kind": "visual", "of": "first_then_zeros"},
    "frame0": {"kind": "raw", "of": "first"},
    "ends": {"kind": "visual", "of": "first_last_then_zeros"},
    "last": {"kind": "raw", "of": "last"},
    "whole": {"kind": "raw", "of": "clip"},
}
CLIPS = {"frames": FRAMES, "select": "all", "size": [HEIGHT, WIDTH]}
FAULTY = "tests.tools.encoders.masked_fault"


def corpus_of(folder: Path, num_videos: int = 3, *, frames: int = 2 * FRAMES) -> Path:
    """Videos of two clips each."""
    folder.mkdir(parents=True)
    for n in range(num_videos):
        write_video(folder / f"v{n}.mp4", moving_pattern(frames, HEIGHT, WIDTH, seed=n))
    return folder


def tower_field(folder: Path, name: str = "wan_clip") -> dict[str, Any]:
    from tests.tools.texts.towers import TINY

    encoder = {"family": name, "model": str(TINY[name](folder / name)), "dtype": "float32"}
    return {"kind": "visual", "of": "first", "encoder": encoder}


@contextmanager
def counted() -> Iterator[list[str]]:
    """The clips that are asked of decoding processes, each time that one is."""
    asked: list[str] = []
    real = DecodePool.decode

    def decode(pool: DecodePool, clip: Any, *args: Any) -> Any:
        asked.append(f"{clip.url}#{clip.start}")
        return real(pool, clip, *args)

    with mock.patch.object(DecodePool, "decode", decode):
        yield asked


def made_at_once(
    folder: Path, corpus: Path, fields: dict[str, Any], status: int = 0, **sections: Any
) -> tuple[Path, str]:
    """A cache whose fields precompute made, and what it printed."""
    folder.mkdir()
    settings = {"clips": CLIPS, **sections, "fields": fields}
    config = make_config(folder, corpus, str(folder / "cache"), **settings)
    found, printed = run_inline("precompute", config)
    assert found == status, printed
    return folder / "cache", printed


def made_one_by_one(
    folder: Path, corpus: Path, fields: dict[str, Any], status: int = 0, **sections: Any
) -> Path:
    """A cache to which each field was added when it was finished."""
    folder.mkdir()
    config = make_config(folder, corpus, str(folder / "cache"), **{"clips": CLIPS, **sections})
    found, printed = run_inline("precompute", config)
    assert found == status, printed
    path = write_fields(folder, **fields)
    found, printed = run_inline("add_field", folder / "cache", path)
    assert found == status, printed
    return folder / "cache"


def assert_same_fields(got: Path, expected: Path) -> None:
    """All that two caches store of fields is the same, bit for bit, and so are their latents."""
    one, other = (
        {name: data for name, data in read_files(url).items() if name.startswith("fields/")}
        for url in (got, expected)
    )
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert samples_of(got) == samples_of(expected)


def test_latents_a_tower_and_a_condition_take_one_decode_per_clip(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus")
    fields = {"clip": tower_field(tmp_path), **PLAIN}
    with counted() as asked:
        url, printed = made_at_once(tmp_path / "at_once", corpus, fields)
    num_clips = len(latentcache.open_cache(str(url)))
    assert len(asked) == len(set(asked)) == num_clips == 6, printed
    with counted() as asked:
        expected = made_one_by_one(tmp_path / "one_by_one", corpus, fields)
    assert len(asked) > num_clips * len(fields)
    assert_same_fields(url, expected)
    assert run_inline("verify", url)[0] == 0
    before = read_files(url)
    with counted() as asked:
        assert run_inline("resume", url)[0] == 0
    assert (asked, read_files(url)) == ([], before)


@pytest.mark.parametrize("sampling", ["nearest", "spread"])
def test_the_last_frame_is_the_clips_own_however_frames_are_sampled(
    tmp_path: Path, sampling: str
) -> None:
    corpus = corpus_of(tmp_path / "corpus", 1, frames=3 * FRAMES)
    clips = {**CLIPS, "sampling": sampling, "select": "all" if sampling == "nearest" else "first"}
    fields = {name: PLAIN[name] for name in ("whole", "last", "frame0")}
    at_once, _ = made_at_once(tmp_path / "at_once", corpus, fields, clips=clips)
    one_by_one = made_one_by_one(tmp_path / "one_by_one", corpus, fields, clips=clips)
    for url in (at_once, one_by_one):
        sample = latentcache.open_cache(str(url))[0]
        np.testing.assert_array_equal(sample["last"], sample["whole"][-1:])
        np.testing.assert_array_equal(sample["frame0"], sample["whole"][:1])
    assert_same_fields(at_once, one_by_one)


def test_a_clip_that_cannot_be_decoded_has_the_frames_that_can(tmp_path: Path) -> None:
    """Its table says that the video has a clip more than it does but for one frame."""
    corpus = corpus_of(tmp_path / "corpus", 2, frames=FRAMES + 1)
    facts = {"frames": 2 * FRAMES, "fps": 24.0, "height": HEIGHT, "width": WIDTH}
    rows = [{"video": str(path), **facts} for path in sorted(corpus.iterdir())]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    arguments = (tmp_path / "table.parquet", PLAIN, 3)
    run = {"runner": "local", "decode_processes": 1, "max_failed_fraction": 1}
    with counted() as asked:
        at_once, printed = made_at_once(tmp_path / "at_once", *arguments, run=run)
    one_by_one = made_one_by_one(tmp_path / "one_by_one", *arguments, run=run)
    assert_same_fields(at_once, one_by_one)
    table = pq.read_table(at_once / "fields/frame0/samples")
    assert table["status"].to_pylist() == ["ok"] * 4
    table = pq.read_table(at_once / "fields/last/samples")
    assert sorted(table["status"].to_pylist()) == ["failed"] * 2 + ["ok"] * 2
    assert "truncated" in printed
    # Once as a clip; of the two that cannot be decoded, for each kind of field as well.
    assert len(asked) == 4 + 2 * (1 + 1 + 2 + 1 + 2)


def test_long_clips_that_are_decoded_in_pieces_give_the_same_fields(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", 2)
    expected, _ = made_at_once(tmp_path / "whole", corpus, PLAIN)
    with (
        mock.patch.object(long_clips, "LONG_BYTES", 0),
        mock.patch.object(long_clips, "PIECE_BYTES", 3 * HEIGHT * WIDTH * 2),
        counted() as asked,
    ):
        url, _ = made_at_once(tmp_path / "pieces", corpus, PLAIN)
    assert len(asked) == len(set(asked)) == 4 * -(-FRAMES // 2)
    assert_same_fields(url, expected)


def test_a_field_whose_encoder_cannot_be_loaded_leaves_the_others_and_the_latents(
    tmp_path: Path,
) -> None:
    corpus = corpus_of(tmp_path / "corpus")
    tiled = {"kind": "dct", "store": "mean", "tiling": {"tile": [16, 32], "overlap": [8, 8]}}
    fields = {name: PLAIN[name] for name in ("i2v", "frame0", "last")}
    with counted() as asked:
        url, printed = made_at_once(tmp_path / "at_once", corpus, fields, 2, encoder=tiled)
    assert "Tiled encoders have none" in printed
    assert "i2v is not made; everything else stays" in printed
    assert len(asked) == 6
    rest = {name: fields[name] for name in ("frame0", "last")}
    expected = made_one_by_one(tmp_path / "one_by_one", corpus, rest, encoder=tiled)
    got, wanted = (
        {n: d for n, d in read_files(u).items() if n.startswith(("fields/frame0", "fields/last"))}
        for u in (url, expected)
    )
    assert got == wanted
    assert samples_of(url) == samples_of(expected)


def bright_corpus(folder: Path, num_videos: int = 8) -> Path:
    """Videos of one clip, the third of which is bright."""
    folder.mkdir()
    for n in range(num_videos):
        grey = 250 if n == 2 else 10 * n
        write_video(folder / f"v{n}.mp4", np.full((FRAMES, HEIGHT, WIDTH, 3), grey, np.uint8))
    return folder


def faulty_run(**run: Any) -> dict[str, Any]:
    encoder = {"kind": FAULTY, "store": "mean"}
    usual = {"runner": "local", "decode_processes": 1, "max_failed_fraction": 1, "max_retries": 1}
    return {"encoder": encoder, "run": usual | run, "cache": {"shard_clips": 2}}


@pytest.mark.parametrize("fault", ["error", "nan", "exit", "storage"])
def test_what_goes_wrong_in_a_field_stays_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    corpus = bright_corpus(tmp_path / "corpus")
    expected, _ = made_at_once(tmp_path / "sound", corpus, PLAIN, **faulty_run())
    monkeypatch.setenv(FAULT, fault)
    status = 1 if fault == "storage" else 3
    with counted() as asked:
        url, printed = made_at_once(tmp_path / "faulty", corpus, PLAIN, status, **faulty_run())
    assert len(asked) >= 8
    assert samples_of(url) == samples_of(expected)
    opened, sound = (latentcache.open_cache(str(u)) for u in (url, expected))
    for name in ("frame0", "last", "whole"):
        np.testing.assert_array_equal(opened["v2.mp4#0"][name], sound["v2.mp4#0"][name])
    with pytest.raises(KeyError):
        opened["v2.mp4#0"]["i2v"]
    monkeypatch.delenv(FAULT)
    assert run_inline("resume", url, "--retry-failed", "run.runner=local")[0] == 0, printed
    assert (latentcache.open_cache(str(url))["v2.mp4#0"]["i2v"] == sound["v2.mp4#0"]["i2v"]).all()


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """The process ends, as it were, at this creation of an object: nothing of it is stored from there on."""
    calls = [0]
    real = Storage.create

    def create(storage: Storage, path: str, data: bytes) -> Any:
        calls[0] += 1
        if calls[0] >= number:
            raise KeyboardInterrupt
        return real(storage, path, data)

    with mock.patch.object(Storage, "create", create):
        yield calls


def kill_at(tmp_path: Path, numbers: Iterator[int]) -> int:
    """Kill runs at creations of objects, finish each with `resume`, compare; returns the last number."""
    corpus, number = corpus_of(tmp_path / "corpus", 2), 0
    expected, _ = made_at_once(tmp_path / "expected", corpus, PLAIN)
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        url = folder / "cache"
        config = make_config(folder, corpus, str(url), clips=CLIPS, fields=PLAIN)
        with killed_at(number) as calls:
            try:
                run_inline("precompute", config)
            except KeyboardInterrupt:
                pass
        job = ("resume", url) if (url / "cache.json").exists() else ("precompute", config)
        assert run_inline(*job)[0] in (0, 2)
        assert run_inline("precompute", config)[0] == 0
        assert_same_fields(url, expected)
        assert run_inline("verify", url)[0] == 0
        if calls[0] < number:
            break
    return number


def test_a_run_that_is_killed_between_latents_and_fields_is_finished(tmp_path: Path) -> None:
    kill_at(tmp_path, iter([17]))
