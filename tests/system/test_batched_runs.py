"""Whole runs that encode several clips at once: the recipe, holes, what is measured, and decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.errors import ConfigError
from latentcache.running.driver import Run
from tests.tools.caches import make_config, make_corpus
from tests.tools.diffusers_tools import section
from tests.tools.planned import planned_from
from tests.tools.tiny_models import save

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_a_clip_that_fails_changes_no_bit_beside_it_and_the_change_is_measured(
    tmp_path: Path,
) -> None:
    model = save("kl", tmp_path / "model")
    corpus = make_corpus(tmp_path / "corpus", 4, frames=5)
    encoder = section(model, "kl", batch=2, memory_format="channels_last")
    runs, caches = [], []
    for name in ("whole", "holes"):
        planned = planned_from(make_config(tmp_path, corpus, str(tmp_path / name), encoder=encoder))
        assert planned.manifest.recipe["encoder"]["batch"] == 2
        if name == "holes":
            (corpus / "v1.mp4").unlink()
        run = Run(planned, planned.missing_shards())
        for _ in run.events():
            pass
        runs.append(run.summary)
        caches.append(latentcache.open_cache(str(tmp_path / name)))
    whole, holes = caches
    assert len(whole) - len(holes) == runs[1].clips_failed == 1
    keys = holes.table().column("key").to_pylist()
    ok = [k for k in keys if k in holes]
    for key in ok:
        assert torch.equal(holes.stored(key), whole.stored(key))
    assert len(runs[0].kernel_errors) > 0
    assert 0 < max(runs[0].kernel_errors) < 0.05  # latents are rounded to bfloat16 only after
    assert whole.decode(ok[0]).shape[0] in (1, 5)


def test_batches_of_clips_are_refused_beside_tiles(tmp_path: Path) -> None:
    tiling = {"tile": [32, 32], "overlap": [8, 8]}
    encoder = section(save("kl", tmp_path / "m"), "kl", batch=2, tiling=tiling)
    with pytest.raises(ConfigError, match=r"encoder.batch is 2, and encoder.tiling"):
        planned_from(
            make_config(tmp_path, make_corpus(tmp_path / "c", 1), "unused", encoder=encoder)
        )
