"""Batches that an estimate tries, and what it says of their memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.estimate import _print_trials
from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.records import Bucket
from latentcache.encoders.batching import Batching
from latentcache.planning.recipe import resolve_encoder
from latentcache.running import trials
from latentcache.running.trials import Trial, try_batches
from tests.tools.caches import make_config
from tests.tools.synthetic import make_spec

CPU = torch.device("cpu")
TILING = {"tile": [32, 32], "overlap": [0, 0]}


def config_of(tmp_path: Path, **encoder: Any) -> Config:
    return load_config(str(make_config(tmp_path, tmp_path, "memory://none", encoder=encoder)))


def tried(config: Config, *buckets: str, shard_clips: int = 64) -> list[Trial]:
    return try_batches(config, resolve_encoder(config)[0], buckets, shard_clips=shard_clips)


@pytest.mark.long
@pytest.mark.slow
def test_batches_of_tiles_are_tried_up_to_all_of_a_clip(tmp_path: Path) -> None:
    found = [
        trial
        for trial in tried(config_of(tmp_path, tiling=TILING), "5x64x96", "5x32x32")
        if trial.setting == "encoder.tiling.batch"
    ]
    assert {trial.bucket for trial in found} == {"5x64x96"}  # the other is one tile
    batches = [trial.batch for trial in found]
    assert batches[0] == 1
    num_tiles = (64 // 32) * (96 // 32)
    assert batches[-1] is not None
    assert batches[-1] // 2 < num_tiles <= batches[-1]
    assert all(trial.clip_s for trial in found)


@pytest.mark.slow
def test_batches_of_clips_are_tried_up_to_those_of_auto_and_of_a_shard(tmp_path: Path) -> None:
    config, name = config_of(tmp_path), "1x256x256"
    auto = Batching(batch="auto").clips_at_once(Bucket.parse(name))
    found = tried(config, name)
    assert {trial.setting for trial in found} == {"encoder.batch"}
    assert [trial.batch for trial in found] == [1 << n for n in range(auto.bit_length())]
    assert found[-1].batch == auto
    assert [trial.batch for trial in tried(config, name, shard_clips=5)] == [1, 2, 4]


def test_with_one_way_nothing_is_tried_and_no_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    spec = resolve_encoder(config)[0]
    monkeypatch.delattr("latentcache.encoders.resolve")
    assert try_batches(config, spec, ["49x480x720"], shard_clips=64) == []
    assert try_batches(config, spec, ["1x64x96"], shard_clips=1) == []


class Takes:
    """Takes much memory while it encodes."""

    def __init__(self, num_bytes: int) -> None:
        self.spec = make_spec("float32", stored="mean")
        self._num_bytes = num_bytes

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        return torch.ones(self._num_bytes, dtype=torch.uint8)[: len(pixels_BTHWC)].clone()

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_peak_is_that_of_encoding_and_not_of_what_was_before() -> None:
    earlier = torch.ones(1 << 29, dtype=torch.uint8)
    del earlier
    bucket, taken = Bucket.parse("1x8x8"), 1 << 27
    pixels = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    trial = trials._try("encoder.batch", Takes(taken), bucket, 1, pixels, CPU)
    if trial.peak_bytes is None:
        pytest.skip("this system does not let a process forget its peak")
    assert taken / 2 < trial.peak_bytes < 2 * taken


def test_what_does_not_fit_ends_the_trial_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(Takes):
        def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
            if len(pixels_BTHWC) > 2:
                raise torch.OutOfMemoryError
            return super().encode(pixels_BTHWC)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    found = list(trials._try_clips(Small(1), Bucket.parse("1x8x8"), [1, 2, 4, 8], CPU))
    assert [trial.batch for trial in found] == [1, 2, 4]
    assert [trial.clip_s is None for trial in found] == [False, False, True]
    _print_trials(found)
    printed = capsys.readouterr().out
    assert printed.count("<- fastest") == 1
    assert "batch 4     the GPU has no memory for it" in printed
