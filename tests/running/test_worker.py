"""One worker: what is stored, what makes a clip fail, and what is published while a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.core.records import ShardReport
from latentcache.encoders.stored import to_stored
from latentcache.errors import ClipError
from latentcache.format.snapshot import read_index
from latentcache.running.driver import Run
from tests.tools.caches import make_config, make_corpus
from tests.tools.planned import planned_from
from tests.tools.synthetic import make_spec


def test_values_that_are_not_finite_fail_the_clip() -> None:
    latents = torch.zeros(1, 4, 2, 3, 3)
    latents[0, 1, 0, 2, 2] = float("nan")
    with pytest.raises(
        ClipError, match="1 of 72 latent values are not finite as bfloat16"
    ) as caught:
        to_stored(latents, "k", make_spec())
    assert caught.value.reason == "non_finite"


def test_values_that_overflow_the_stored_dtype_fail_the_clip() -> None:
    latents = torch.full((1, 4, 2, 3, 3), 70000.0)
    assert to_stored(latents, "k", make_spec("bfloat16")).shape == (4, 2, 3, 3)
    with pytest.raises(ClipError, match="72 of 72 latent values are not finite as float16"):
        to_stored(latents, "k", make_spec("float16"))


def test_a_stored_sample_depends_on_the_key_alone() -> None:
    moments = torch.zeros(1, 8, 2, 3, 3)
    spec = make_spec("float32", stored="sample")
    one, again, other = (to_stored(moments, key, spec) for key in ("a", "a", "b"))
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.slow
def test_the_snapshot_is_published_while_the_run_goes_on(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 4)
    run_config = {"snapshot_interval_s": 1e-6}
    prepared = planned_from(make_config(tmp_path, corpus, str(tmp_path / "cache"), run=run_config))
    run = Run(prepared, prepared.missing_shards())
    published = [
        read_index(prepared.storage).num_rows
        for event in run.events()
        if isinstance(event, ShardReport)
    ]
    assert published == [1, 2, 3, 4]
    assert len(latentcache.open_cache(str(tmp_path / "cache"))) == 9
