"""Audio fields: what is heard while a clip's frames are shown, as it is and encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import latentcache
from jobs.cli import SOME_FAILED
from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import write_fields
from tests.tools.texts.sounds import RATES, REFERENCES, SETTINGS, TINY
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here
from tests.tools.videos import moving_pattern, write_sound, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

FRAMES, SIZE, SECONDS = 24, (32, 48), 0.3
#: Five frames of 12 per second of a video of 24.
SPAN_S = 9 / 24
WAVES: dict[str, dict[str, Any]] = {
    "wave": {"kind": "audio", "seconds": 0.5, "rate": 16_000},
    "short": {"kind": "audio", "seconds": SECONDS, "rate": 44_100, "channels": 2},
}
ENCODED = {"w2v": "wav2vec2", "codes": "encodec", "latents_of_sound": "ltx2"}


def tones(seconds: float) -> np.ndarray:
    t = np.arange(round(seconds * 44_100)) / 44_100
    return (np.stack([np.sin(900 * t), np.sin(2500 * t)]) * (0.1 + 0.3 * t)).astype(np.float32)


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of clips at a rate of their own, whose sound was added to it."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "corpus").mkdir()
    pixels = moving_pattern(FRAMES, *SIZE)
    write_sound(folder / "corpus/loud.mp4", tones(1), rate=44_100, codec="aac", pixels=pixels)
    write_sound(folder / "corpus/ends.mkv", tones(0.4), rate=44_100, codec="flac", pixels=pixels)
    write_video(folder / "corpus/mute.mp4", pixels)
    config = make_config(
        folder,
        folder / "corpus",
        str(folder / "cache"),
        clips={"frames": 5, "fps": 12, "select": "all", "size": list(SIZE)},
    )
    assert run_inline("precompute", config)[0] == 0
    fields = dict(WAVES)
    for name, family in ENCODED.items():
        model = TINY[family](folder / family)
        encoder = {"family": family, "model": str(model), **SETTINGS[family]}
        fields[name] = {"kind": "audio", "seconds": 0.5, "encoder": encoder}
    path = write_fields(folder, **fields)
    words = ("run.runner=local", "run.decode_processes=1")
    status, printed = run_inline("add_field", folder / "cache", path, *words)
    assert status == SOME_FAILED, printed
    (folder / "printed.txt").write_text(printed)
    return folder


def sound_of(folder: Path, row: Any, rate: int, channels: int) -> np.ndarray:
    """What PyAV gives of a clip's span: [n, channels]."""
    with av.open(str(folder / "corpus" / row["source"])) as container:
        frames = list(container.decode(audio=0))
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
    pieces = [out for frame in [*frames, None] for out in resampler.resample(frame) if out]
    whole = np.concatenate([piece.to_ndarray() for piece in pieces], axis=1).T
    first = round((row["start_s"] - frames[0].time) * rate)
    count = round((row["end_s"] - row["start_s"]) * rate)
    whole = whole if channels == 2 else whole.mean(axis=1, dtype=np.float32, keepdims=True)
    silence = np.zeros((max(0, first + count - len(whole)), channels), np.float32)
    return np.concatenate([whole, silence])[first : first + count]


def rows_of(folder: Path, cache: Any) -> list[dict[str, Any]]:
    return [row for row in cache.table().to_pylist() if row["source"] != "mute.mp4"]


@pytest.mark.slow
def test_sound_is_that_of_the_clips_own_frames(folder: Path) -> None:
    cache = latentcache.open_cache(str(folder / "cache"))
    rows = [row for row in rows_of(folder, cache) if row["key"] != "ends.mkv#1"]
    assert {row["key"] for row in rows} == {"loud.mp4#0", "loud.mp4#1", "ends.mkv#0"}
    for row in rows:
        assert row["end_s"] - row["start_s"] == pytest.approx(SPAN_S, abs=0.002)
        expected = sound_of(folder, row, 16_000, 1)
        found = cache[row["key"]]
        assert found["wave_tokens"] == len(expected)
        np.testing.assert_array_equal(found["wave"][: len(expected)].numpy(), expected)
        assert not found["wave"][len(expected) :].any()
        whole = sound_of(folder, row, 44_100, 2)
        np.testing.assert_array_equal(found["short"].numpy(), whole[: round(SECONDS * 44_100)])
        lost = table(folder, "short")[row["key"]]["lost_tokens"]
        assert lost == len(whole) - len(found["short"])


@pytest.mark.slow
@pytest.mark.parametrize("field", ENCODED)
def test_what_is_encoded_is_what_the_reference_gives(folder: Path, field: str) -> None:
    cache, family = latentcache.open_cache(str(folder / "cache")), ENCODED[field]
    for row in rows_of(folder, cache):
        if row["key"] == "ends.mkv#1":
            continue
        samples = sound_of(folder, row, RATES[family], 2 if family == "ltx2" else 1)
        expected = REFERENCES[family](folder / family, samples, torch.float32)
        sample = cache[row["key"]]
        found = sample[field][: sample[f"{field}_tokens"]]
        assert torch.equal(found.to(expected.dtype), expected)


@pytest.mark.slow
def test_what_is_cut_off_is_said_and_a_check_finds_nothing(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    assert printed.count(f"3 clips have more sound than the {SECONDS:g} s") == 1  # of `short` only
    status, printed = run_inline("verify", folder / "cache")
    assert status == 0, printed


@pytest.mark.slow
def test_batches_have_the_sound_and_its_mask(folder: Path) -> None:
    cache = latentcache.open_cache(str(folder / "cache"))
    loader = latentcache.LatentLoader(
        str(folder / "cache"), batch_size=3, fields=["wave", "codes"], pad="batch", shuffle=False
    )
    (batch,) = list(loader)
    assert set(batch["key"]) == {"loud.mp4#0", "loud.mp4#1", "ends.mkv#0"}
    for n, key in enumerate(batch["key"]):
        tokens = int(batch["wave_tokens"][n])
        assert int(batch["wave_mask"][n].sum()) == tokens
        assert torch.equal(batch["wave"][n, :tokens], cache[key]["wave"][:tokens])
    assert batch["wave"].shape[1] == int(batch["wave_tokens"].max())


def table(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    tables = sorted((folder / f"cache/fields/{name}/samples").rglob("*.parquet"))
    return {row["key"]: row for path in tables for row in pq.read_table(path).to_pylist()}


@pytest.mark.slow
def test_clips_without_sound_are_rows_with_a_reason_and_are_not_tried_again(folder: Path) -> None:
    for name in (*WAVES, *ENCODED):
        rows = table(folder, name)
        failed = {key: row["reason"] for key, row in rows.items() if row["status"] == "failed"}
        silent = ("ends.mkv#1", "mute.mp4#0", "mute.mp4#1")
        assert failed == dict.fromkeys(silent, "no_sound")
    status, printed = run_inline(
        "resume", folder / "cache", "--field", "wave", "--retry-failed", "run.runner=local"
    )
    assert status in (0, SOME_FAILED), printed
    assert not list((folder / "cache/fields/wave").glob("versions/*"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({}, "seconds"),
        ({"seconds": 1}, "rate: say how many"),
        ({"seconds": 0, "rate": 16_000}, "seconds"),
        ({"seconds": float("nan"), "rate": 16_000}, "seconds"),
        ({"seconds": 1, "rate": 16_000, "channels": 3}, "channels"),
        ({"seconds": 1, "rate": 1.5}, "rate"),
        ({"seconds": 1, "rate": 16_000, "encoder": {"family": "encodec"}}, "the encoder's own"),
        ({"seconds": 1, "rate": 16_000, "store": "uint8"}, "store"),
    ],
)
def test_audio_fields_that_cannot_be_are_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_field("bad", {"kind": "audio", **field})
