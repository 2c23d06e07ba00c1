"""Latents and fields of frames from one decode: counted, and bit for bit what each by itself gives."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
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

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]
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
FAULTY_FIELDS = {name: PLAIN[name] for name in ("i2v", "frame0")}
#: The key of the clip at which FAULTY fails.
BRIGHT = "v2.mp4#0"
KILLED_FIELDS = FAULTY_FIELDS
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
    folder: Path, corpus: Path, fields: dict[str, Any], status: int = 0, /, **sections: Any
) -> tuple[Path, str]:
    """A cache whose fields precompute made, and what it printed."""
    folder.mkdir()
    settings = {"clips": CLIPS, **sections, "fields": fields}
    config = make_config(folder, corpus, str(folder / "cache"), **settings)
    found, printed = run_inline("precompute", config)
    assert found == status, printed
    return folder / "cache", printed


def made_one_by_one(
    folder: Path, corpus: Path, fields: dict[str, Any], status: int = 0, /, **sections: Any
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
    corpus = corpus_of(tmp_path / "corpus", 2)
    fields = {name: PLAIN[name] for name in ("i2v", "last")} | {"clip": tower_field(tmp_path)}
    with counted() as asked:
        url, printed = made_at_once(tmp_path / "at_once", corpus, fields)
    num_clips = len(latentcache.open_cache(str(url)))
    assert len(asked) == len(set(asked)) == num_clips == 4, printed
    with counted() as asked:
        expected = made_one_by_one(tmp_path / "one_by_one", corpus, fields)
    assert len(asked) == num_clips * (1 + len(fields))
    assert_same_fields(url, expected)
    before = read_files(url)
    with counted() as asked:
        assert run_inline("resume", url)[0] == 0
    assert (asked, read_files(url)) == ([], before)


@pytest.mark.long
def test_all_kinds_of_fields_take_one_decode_per_clip(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus")
    with counted() as asked:
        url, _ = made_at_once(tmp_path / "at_once", corpus, PLAIN)
    assert len(asked) == len(set(asked)) == 6
    assert_same_fields(url, made_one_by_one(tmp_path / "one_by_one", corpus, PLAIN))
    assert run_inline("verify", url)[0] == 0


@pytest.mark.parametrize(
    ("sampling", "select"),
    [("spread", "first"), pytest.param("nearest", "all", marks=pytest.mark.long)],
)
def test_the_last_frame_is_the_clips_own_however_frames_are_sampled(
    tmp_path: Path, sampling: str, select: str
) -> None:
    corpus = corpus_of(tmp_path / "corpus", 1, frames=3 * FRAMES)
    clips = {**CLIPS, "sampling": sampling, "select": select}
    url, _ = made_at_once(tmp_path / "made", corpus, {"whole": PLAIN["whole"]}, clips=clips)
    path = write_fields(tmp_path, last=PLAIN["last"])
    assert run_inline("add_field", url, path)[0] == 0
    sample = latentcache.open_cache(str(url))[0]
    np.testing.assert_array_equal(sample["last"], sample["whole"][-1:])


@pytest.mark.long
def test_a_clip_that_cannot_be_decoded_has_the_frames_that_can(tmp_path: Path) -> None:
    """Its table says that the video has a clip more; of that clip it has the first frame."""
    fields = {name: PLAIN[name] for name in ("frame0", "last", "whole", "i2v")}
    corpus = corpus_of(tmp_path / "corpus", 2, frames=FRAMES + 1)
    facts = {"frames": 2 * FRAMES, "fps": 24.0, "height": HEIGHT, "width": WIDTH}
    rows = [{"video": str(path), **facts} for path in sorted(corpus.iterdir())]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    arguments = (tmp_path / "table.parquet", fields, 3)
    settings = {
        "corpus": {"columns": {name: name for name in rows[0]}},
        "run": {"max_failed_fraction": 1},
    }
    with counted() as asked:
        at_once, printed = made_at_once(tmp_path / "at_once", *arguments, **settings)
    one_by_one = made_one_by_one(tmp_path / "one_by_one", *arguments, **settings)
    assert_same_fields(at_once, one_by_one)
    table = pq.read_table(at_once / "fields/frame0/samples")
    assert table["status"].to_pylist() == ["ok"] * 4
    table = pq.read_table(at_once / "fields/last/samples")
    assert sorted(table["status"].to_pylist()) == ["failed"] * 2 + ["ok"] * 2
    assert "truncated" in printed
    # Each once as a clip; those that cannot be decoded, for each kind of field as well.
    assert len(asked) == 4 + 2 * len(fields)


@pytest.mark.long
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


@pytest.mark.long
def test_a_field_whose_encoder_cannot_be_loaded_leaves_the_others_and_the_latents(
    tmp_path: Path,
) -> None:
    corpus = corpus_of(tmp_path / "corpus")
    tiled = {"kind": "dct", "store": "mean", "tiling": {"tile": [16, 32], "overlap": [8, 8]}}
    fields = {name: PLAIN[name] for name in ("i2v", "frame0", "last")}
    with counted() as asked:
        url, printed = made_at_once(tmp_path / "at_once", corpus, fields, 1, encoder=tiled)
    assert "Tiled encoders have none" in printed
    assert "Stopped. 0 shards of i2v are safe" in printed
    assert len(asked) == 6
    rest = {name: fields[name] for name in ("frame0", "last")}
    expected = made_one_by_one(tmp_path / "one_by_one", corpus, rest, encoder=tiled)
    got, wanted = (
        {n: d for n, d in read_files(u).items() if n.startswith(("fields/frame0", "fields/last"))}
        for u in (url, expected)
    )
    assert got == wanted
    assert samples_of(url) == samples_of(expected)


def faulty_run(**run: Any) -> dict[str, Any]:
    encoder = {"kind": FAULTY, "store": "mean"}
    usual = {"runner": "local", "decode_processes": 1, "max_failed_fraction": 1, "max_retries": 1}
    return {"encoder": encoder, "run": usual | run, "cache": {"shard_clips": 2}}


@pytest.fixture(scope="module", name="sound")
def sound_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of videos of one clip, the third of which is bright, beside their folder."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "corpus").mkdir()
    for n in range(5):
        grey = 250 if n == 2 else 10 * n
        pixels = np.full((FRAMES, HEIGHT, WIDTH, 3), grey, np.uint8)
        write_video(folder / f"corpus/v{n}.mp4", pixels)
    return made_at_once(folder / "made", folder / "corpus", FAULTY_FIELDS, **faulty_run())[0]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("error", 3),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("nan", 3), ("exit", 3), ("storage", 1))
        ),
    ],
)
def test_what_goes_wrong_in_a_field_stays_in_it(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, fault: str, status: int
) -> None:
    monkeypatch.setenv(FAULT, fault)
    corpus = sound.parents[1] / "corpus"
    url, printed = made_at_once(tmp_path / "faulty", corpus, FAULTY_FIELDS, status, **faulty_run())
    assert_only_a_condition_is_missing(url, sound)
    monkeypatch.delenv(FAULT)
    assert run_inline("resume", url, "--retry-failed", "run.runner=local")[0] == 0, printed
    opened, expected = (latentcache.open_cache(str(u))[BRIGHT] for u in (url, sound))
    assert (opened["i2v"] == expected["i2v"]).all()


def assert_only_a_condition_is_missing(url: Path, sound: Path) -> None:
    assert samples_of(url) == samples_of(sound)
    opened, expected = (latentcache.open_cache(str(u)) for u in (url, sound))
    for n in range(len(expected)):
        np.testing.assert_array_equal(opened[n]["frame0"], expected[n]["frame0"])
    with pytest.raises(KeyError):
        opened[BRIGHT]["i2v"]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("runner", "fault", "status"), [("local", "hang", 1), ("ray", "hang", 1), ("ray", "kill", 3)]
)
def test_a_field_that_kills_or_stops_its_worker_costs_no_latent(
    tmp_path: Path, sound: Path, runner: str, fault: str, status: int
) -> None:
    """A worker that hangs is no failure of its clips: what waits for it stops the run in the end."""
    run = {"runner": runner, "device": "cpu", "workers": 1, "stall_s": 30}
    settings = {"clips": CLIPS, **faulty_run(**run), "fields": FAULTY_FIELDS}
    corpus = sound.parents[1] / "corpus"
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), **settings)
    job = start_job("precompute", config, env={FAULT: fault})
    out, err = job.communicate(timeout=1000)
    assert job.returncode == status, out + err
    assert ("MachineError: " in err) == (fault == "hang")
    assert_only_a_condition_is_missing(tmp_path / "cache", sound)


@contextmanager
def killed_at(is_time: Callable[[int, str], bool]) -> Iterator[list[int]]:
    """The process ends, as it were, at this creation of an object: nothing is stored from there on.

    is_time: of the number of creations, and the object's path. Yields that number.
    """
    calls, is_dead = [0], [False]
    real = Storage.create

    def create(storage: Storage, path: str, data: bytes) -> Any:
        calls[0] += 1
        is_dead[0] |= is_time(calls[0], path)
        if is_dead[0]:
            raise KeyboardInterrupt
        return real(storage, path, data)

    with mock.patch.object(Storage, "create", create):
        yield calls


def assert_finished_after(
    folder: Path, corpus: Path, expected: Path, is_time: Callable[[int, str], bool]
) -> int:
    """Kill a run, finish it with `resume`, compare; returns how many objects it tried to create."""
    folder.mkdir()
    url = folder / "cache"
    config = make_config(folder, corpus, str(url), clips=CLIPS, fields=KILLED_FIELDS)
    with killed_at(is_time) as calls, suppress(KeyboardInterrupt):
        run_inline("precompute", config)
    if (url / "cache.json").exists():
        run_inline("resume", url)
    assert run_inline("precompute", config)[0] == 0
    assert_same_fields(url, expected)
    assert run_inline("verify", url)[0] == 0
    return calls[0]


@pytest.mark.long
def test_resume_makes_fields_with_the_latents_that_are_missing(tmp_path: Path) -> None:
    corpus, url = corpus_of(tmp_path / "corpus", 2), tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(url), clips=CLIPS, fields=KILLED_FIELDS)
    with killed_at(partial(_starts, "latents/")) as calls, suppress(KeyboardInterrupt):
        run_inline("precompute", config)
    assert calls[0]
    assert not list(url.glob("samples/*x*"))
    with counted() as asked:
        status, printed = run_inline("resume", url)
    assert (status, len(asked), len(set(asked))) == (0, 4, 4), printed
    assert_same_fields(url, made_at_once(tmp_path / "other", corpus, KILLED_FIELDS)[0])


def _starts(prefix: str, _: int, path: str) -> bool:
    return path.startswith(prefix)


def _is_past(last: int, number: int, _: str) -> bool:
    return number >= last


@pytest.mark.long
def test_a_run_that_is_killed_between_latents_and_fields_is_finished(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", 2)
    expected, _ = made_at_once(tmp_path / "expected", corpus, KILLED_FIELDS)
    for prefix in ("fields/frame0/0", "fields/i2v/0", "fields/frame0/samples", "samples/"):
        folder = tmp_path / prefix.replace("/", "-")
        assert_finished_after(folder, corpus, expected, partial(_starts, prefix))


@pytest.mark.long
def test_a_run_that_is_killed_at_any_creation_is_finished(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", 2)
    expected, _ = made_at_once(tmp_path / "expected", corpus, KILLED_FIELDS)
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        tried = assert_finished_after(folder, corpus, expected, partial(_is_past, last))
        if tried < last:
            break
    assert last > len(read_files(expected)) // 2


@pytest.mark.long
def test_runs_that_are_killed_and_two_at_once_leave_what_one_run_does(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", 8)
    expected, _ = made_at_once(tmp_path / "expected", corpus, PLAIN)
    url = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(url), clips=CLIPS, fields=PLAIN)
    for num_objects in (3, 9, 15):
        process = start_job("precompute", config)
        while process.poll() is None and len(list(url.glob("fields/*/0*/**/c/*"))) < num_objects:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    for run in [start_job("precompute", config) for _ in range(2)]:
        out, err = run.communicate()
        assert run.returncode == 0, out + err
    assert_same_fields(url, expected)
    assert run_inline("verify", url)[0] == 0


@pytest.mark.long
def test_fields_are_made_with_the_latents_on_ray(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus")
    fields = {"clip": tower_field(tmp_path), **PLAIN}
    expected, _ = made_at_once(tmp_path / "local", corpus, fields)
    # One worker has as many threads as the local one; with fewer, CLIP's sums are rounded otherwise.
    run = {"runner": "ray", "workers": 1, "device": "cpu"}
    url, printed = made_at_once(tmp_path / "ray", corpus, fields, run=run)
    assert_same_fields(url, expected)
    assert len(list((url / "logs").iterdir())) == 1, printed  # no field had a run of its own
