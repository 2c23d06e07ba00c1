"""Sequences of ids, and frames that a function draws: equal to those of the whole clips."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.sparse import Sparse
from latentcache.reading.views.tokens import Tokens
from tests.tools.synthetic import Synthetic, write_cache

OFFSET = 3


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    url = str(tmp_path_factory.mktemp("ids"))
    return write_cache(url, stored="ids", dtype="uint16", buckets={"13x16x24": 6})


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    url = str(tmp_path_factory.mktemp("frames"))
    return write_cache(url, stored="moments", buckets={"12x16x16": 5}, by_frame=True)


@functools.cache
def opened(url: str) -> Cache:
    return open_cache(url)


def whole(cache: Synthetic, key: str) -> torch.Tensor:
    return opened(cache.url)[key]["latents"].reshape(-1)


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, 1, 5, 20])
@pytest.mark.parametrize("bos", [None, 1])
def test_crops_are_those_of_the_whole_sequence(
    context: int | None, bos: int | None, ids: Synthetic
) -> None:
    if context is None:
        view = Tokens(bos=bos, offset=OFFSET, positions=True)
    else:
        view = Tokens(context, shift=True, bos=bos, offset=OFFSET, positions=True)
    starts = set()
    loader = LatentLoader(ids.url, batch_size=2, view=view)
    for batch in (batch for _ in range(4) for batch in loader):
        shift = int(context is not None)
        for n, key in enumerate(batch["key"]):
            start = int(batch["start"][n])
            sequence = whole(ids, key) + OFFSET
            axes = torch.cartesian_prod(*map(torch.arange, (4, 2, 3)))
            if bos is not None:
                sequence = torch.cat([torch.tensor([bos]), sequence])
                axes = torch.cat([torch.zeros(1, 3, dtype=torch.int64), axes + 1])
            length = context or len(sequence)
            assert torch.equal(batch["tokens"][n], sequence[start : start + length])
            assert torch.equal(batch["positions"][n], axes[start : start + length])
            if shift:
                end = start + length + 1
                assert torch.equal(batch["targets"][n], sequence[start + 1 : end])
            starts.add(start)
    assert (len(starts) > 1) == (context is not None)


@pytest.mark.slow
def test_a_crop_may_be_only_what_begins_the_sequence(ids: Synthetic) -> None:
    loader = LatentLoader(ids.url, view=Tokens(1, bos=1, offset=OFFSET))
    for batch in (batch for _ in range(20) for batch in loader):
        assert torch.equal(batch["tokens"][:, 0] == 1, batch["start"] == 0)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Tokens(24, shift=True), "context 24 needs 25 ids, but clips of bucket 13x16x24 have 24"),
        (Tokens(bos=7), "bos 7 is an id of the codebook"),
    ],
)
def test_sequences_of_no_sense_are_refused(view: Tokens, message: str, ids: Synthetic) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentLoader(ids.url, view=view)


def test_latents_are_no_tokens(frames: Synthetic) -> None:
    with pytest.raises(ConfigError, match="gives latents, no ids"):
        LatentLoader(frames.url, view=Tokens())


def two_and_some(num_frames: int, draw: torch.Generator) -> tuple[list[int], list[int]]:
    order = torch.randperm(num_frames, generator=draw).tolist()
    return order[:2], order[2 : 3 + int(torch.randint(3, (), generator=draw))]


def test_sparse_frames_are_those_of_the_whole_clip(frames: Synthetic) -> None:
    cache = open_cache(frames.url)
    seen = set()
    for batch in LatentLoader(cache, batch_size=3, view=Sparse(two_and_some, 6)):
        assert batch["obs_mask"].shape == (len(batch["key"]), 6, 1, 1, 1)
        for n, key in enumerate(batch["key"]):
            observed, generated = (
                batch[name][n].flatten().bool() for name in ("obs_mask", "latent_mask")
            )
            places, latents = batch["frame_indices"][n], batch["latents"][n]
            used = observed | generated
            assert int(observed.sum()) == 2
            assert not bool((observed & generated).any())
            assert torch.equal(latents[:, used], cache[key]["latents"][:, places[used]])
            assert not bool(latents[:, ~used].any())
            seen.add(tuple(places.tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize("chosen", [([], []), (range(9), range(9))])
def test_draws_of_too_many_or_no_frames_are_refused(chosen: Any, frames: Synthetic) -> None:
    with pytest.raises(ConfigError, match="there must be 1 to at_most=6"):
        list(LatentLoader(frames.url, view=Sparse(lambda *_: chosen, 6)))


def test_sparse_frames_of_causal_latents_are_refused(tmp_path: Path) -> None:
    causal = write_cache(str(tmp_path), buckets={"9x16x16": 2})
    with pytest.raises(ConfigError, match="has seen the frames before it"):
        LatentLoader(causal.url, view=Sparse(two_and_some, 6))


@pytest.mark.slow
def test_crops_at_the_start_may_be_short_and_are_filled_up(ids: Synthetic) -> None:
    view = Tokens(6, shift=True, bos=1, offset=OFFSET, positions=True, shortest=2)
    lengths = set()
    loader = LatentLoader(ids.url, batch_size=2, view=view)
    for batch in (batch for _ in range(8) for batch in loader):
        for n, key in enumerate(batch["key"]):
            end, start = int(batch["length"][n]), int(batch["start"][n])
            sequence = torch.cat([torch.tensor([1]), whole(ids, key) + OFFSET])[start:end]
            assert start == max(0, end - 7)
            fill = torch.zeros(7 - len(sequence), dtype=torch.int64)
            assert torch.equal(batch["tokens"][n], torch.cat([sequence[:-1], fill]))
            assert torch.equal(batch["targets"][n], torch.cat([sequence[1:], fill]))
            assert not batch["positions"][n, len(sequence) - 1 :].any()
            lengths.add(end)
    assert lengths <= set(range(3, 26))
    assert min(lengths) < 7 < max(lengths)


def test_clips_shorter_than_the_context_are_taken_if_crops_may_be_short(ids: Synthetic) -> None:
    with pytest.raises(ConfigError, match="context 40 needs 40 ids, but clips"):
        LatentLoader(ids.url, view=Tokens(40, offset=OFFSET))
    for batch in LatentLoader(ids.url, view=Tokens(40, offset=OFFSET, shortest=24)):
        assert batch["length"].tolist() == [24] * len(batch["key"])
        assert not batch["tokens"][:, 24:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 4, "shortest": 5, "offset": 3}, "shortest 5 is of crops, and context is 4"),
        ({"shortest": 5, "offset": 3}, "context is None"),
        ({"context": 4, "shortest": 2}, r"filled up with 0, but with offset 0 .* 0 is a token"),
        ({"context": 4, "shortest": 2, "offset": 1, "bos": 0}, "0 is a token"),
        ({"context": 4, "shortest": 0, "offset": 1}, "shortest"),
    ],
)
def test_short_crops_that_cannot_be_told_from_tokens_are_refused(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Tokens(**options)
