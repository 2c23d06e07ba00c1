"""Fields in batches: the right arrays beside the right latents, whatever is dropped, chosen or left out."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentcache
from latentcache import LatentLoader, Window
from latentcache.core.dtypes import as_numpy
from latentcache.core.records import Bucket
from latentcache.reading.loader.fields import wan_mask
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field
from tests.tools.planned import FAILED

CAPTIONS = [f"caption number {n}" + " and more" * n for n in range(11)]
LENGTH = 64


@pytest.fixture(scope="module", name="url")
def url_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with two fields of captions, and one of lists of texts."""
    folder = tmp_path_factory.mktemp("fields")
    texts = [[f"{caption} {k}" for k in range(1 + n % 3)] for n, caption in enumerate(CAPTIONS)]
    cache = cache_of(folder, CAPTIONS, texts=texts)
    add(cache, umt5=text_field(length=LENGTH, nulls={"negative": "bad"}))
    add(cache, clip=text_field(length=LENGTH, padding="mask", side="left", pooled=True))
    add(cache, several=text_field(length=LENGTH, column="texts"))
    return cache.storage.url


def batches(url: str, **options: Any) -> list[dict[str, Any]]:
    return list(LatentLoader(url, batch_size=3, seed=7, **options))


def by_key(found: list[dict[str, Any]], *names: str) -> dict[str, tuple[Any, ...]]:
    """What a run's batches say of each clip."""
    return {
        key: tuple(batch[name][n] for name in names)
        for batch in found
        for n, key in enumerate(batch["key"])
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


@pytest.mark.slow
def test_each_clip_has_its_own_states(url: str) -> None:
    found = by_key(batches(url, fields=["umt5", "clip"]), "caption", "umt5", "clip", "umt5_tokens")
    assert len(found) == len(CAPTIONS) - len(FAILED)
    for caption, umt5, clip, tokens in found.values():
        np.testing.assert_array_equal(as_numpy(umt5), padded(caption, LENGTH))
        np.testing.assert_array_equal(as_numpy(clip), padded(caption, LENGTH, side="left"))
        assert int(tokens) == min(LENGTH, len(caption) + 1)


@pytest.mark.slow
def test_a_mask_says_where_a_text_is(url: str) -> None:
    for batch in batches(url, fields=["clip"]):
        assert batch["clip_mask"].dtype == torch.bool
        assert torch.equal(batch["clip_mask"], (batch["clip"] != 0).any(-1))
        assert batch["clip.pooled"].shape == (len(batch["key"]), 8)


@pytest.mark.slow
def test_fields_do_not_change_what_a_trainer_gets(url: str) -> None:
    plain = batches(url)
    for options in ({}, {"caption_dropout": 0.5}, {"fields": ["umt5", "clip"]}):
        options = {"fields": ["umt5"], **options}
        for one, other in zip(plain, batches(url, **options), strict=True):
            assert all(same(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_batch_without_a_fixed_length_is_as_long_as_its_longest_text(url: str) -> None:
    whole = by_key(batches(url, fields=["clip"]), "clip", "clip_mask")
    for batch in batches(url, fields=["clip"], pad="batch"):
        length = int(batch["clip_tokens"].max())
        assert batch["clip"].shape[1] == batch["clip_mask"].shape[1] == length
        for n, key in enumerate(batch["key"]):
            assert torch.equal(batch["clip"][n], whole[key][0][-length:])
            assert torch.equal(batch["clip_mask"][n], whole[key][1][-length:])


@pytest.mark.slow
def test_padding_that_a_model_attends_to_is_not_cut(url: str) -> None:
    with pytest.raises(latentcache.ConfigError, match="attends to the padding of umt5"):
        LatentLoader(url, fields=["umt5"], pad="batch")


@pytest.mark.parametrize(("dropped", "text"), [("null", ""), ("negative", "bad"), ("zeros", None)])
def test_dropped_texts_are_dropped_in_all_fields_to_what_is_named(
    url: str, dropped: str, text: str | None
) -> None:
    fields = ["umt5"] if dropped == "negative" else ["umt5", "clip"]
    found = batches(url, fields=fields, caption_dropout=0.5, dropped=dropped)
    rows = by_key(found, "dropped", "caption", *fields)
    assert {bool(row[0]) for row in rows.values()} == {True, False}
    for gone, caption, *given in rows.values():
        expected = text if gone else caption
        for side, states in zip(("right", "left"), given, strict=False):
            nothing = padded("", LENGTH) * 0
            wanted = nothing if expected is None else padded(expected, LENGTH, side=side)
            np.testing.assert_array_equal(as_numpy(states), wanted)


def test_a_null_that_is_not_there_is_said(url: str) -> None:
    with pytest.raises(latentcache.ConfigError, match=r"no such text\. Did you mean 'negative'"):
        LatentLoader(url, fields=["umt5"], caption_dropout=0.1, dropped="negativ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_dropout": 1.5}, "a part, from 0 to 1"),
        ({"pad": "longest"}, "is not one of spec, batch"),
        ({"missing": "zeros"}, "is not one of leave_out, null"),
        ({"fields": ["umt5", "umt5"]}, "named twice"),
        ({"fields": ["umt"]}, "Did you mean 'umt5'"),
        ({"fields": [], "caption_dropout": 0.1}, "name them in `fields`"),
        ({"follow": True}, "make a new loader"),
    ],
)
def test_wrong_options_are_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(latentcache.ConfigError, match=message):
        LatentLoader(url, **{"fields": ["umt5"], **options})


@pytest.mark.slow
def test_one_of_several_texts_comes_and_another_in_another_epoch(url: str) -> None:
    loader, seen = LatentLoader(url, batch_size=3, fields=["several"]), dict[str, set[int]]()
    for _ in range(8):
        for batch in loader:
            for n, key in enumerate(batch["key"]):
                choice, texts = batch["several_choice"][n], batch["texts"][n]
                wanted = padded(texts[choice], LENGTH)
                np.testing.assert_array_equal(as_numpy(batch["several"][n]), wanted)
                seen.setdefault(key, set()).add(choice)
    assert {key: len(found) for key, found in seen.items()} == {
        f"v{n}#0": 1 + n % 3 for n in range(len(CAPTIONS)) if n not in FAILED
    }


@pytest.mark.slow
def test_drops_and_choices_do_not_depend_on_ranks_batches_or_restarts(url: str) -> None:
    options = {"fields": ["umt5", "several"], "caption_dropout": 0.4}
    names = ("dropped", "several_choice", "umt5", "several")
    wanted = by_key(batches(url, **options), *names)
    ranks = [
        found
        for rank in range(2)
        for found in LatentLoader(
            url, batch_size=2, seed=7, rank=rank, world_size=2, uneven="exact", **options
        )
    ]
    first = LatentLoader(url, batch_size=3, seed=7, **options)
    taken = [next(iter(first))]
    again = pickle.loads(pickle.dumps(LatentLoader(url, batch_size=3, seed=7, **options)))
    again.load_state_dict(first.state_dict())
    for found in (ranks, [*taken, *again]):
        rows = by_key(found, *names)
        assert rows.keys() == wanted.keys()
        assert all(all(map(same, rows[key], wanted[key])) for key in wanted)


@pytest.mark.slow
def test_clips_that_a_field_lacks_are_left_out_or_have_the_null(tmp_path: Path) -> None:
    captions = ["a", "NAN", "c", None, "e", "f"]
    cache = cache_of(tmp_path, captions)
    add(cache, status=3, umt5=text_field())
    loader = LatentLoader(cache.storage.url, batch_size=2, fields=["umt5"])
    assert loader.left_out == [{"umt5": 2}]
    rows = by_key(list(loader), "caption", "umt5")
    assert sorted(row[0] for row in rows.values()) == ["a", "e", "f"]
    loader = LatentLoader(cache.storage.url, batch_size=2, fields=["umt5"], missing="null")
    rows = by_key(list(loader), "caption", "umt5", "umt5_missing")
    for caption, states, lacks in rows.values():
        assert bool(lacks) == (caption in ("NAN", None))
        np.testing.assert_array_equal(as_numpy(states), padded("" if lacks else caption))


@pytest.mark.parametrize("dropped", ["null", "negative", "zeros"])
@pytest.mark.parametrize("rate", [0.0, 1e-9, 1.0])
def test_clips_that_a_field_lacks_have_the_null_whatever_is_dropped(
    tmp_path: Path, dropped: str, rate: float
) -> None:
    cache = cache_of(tmp_path, ["a", None, "c"])
    add(cache, status=3, umt5=text_field(nulls={"negative": "bad"}))
    options: Mapping[str, Any] = {"caption_dropout": rate, "dropped": dropped, "missing": "null"}
    rows = by_key(
        batches(cache.storage.url, fields=["umt5"], **options), "caption", "umt5", "umt5_missing"
    )
    texts = {"null": padded(""), "negative": padded("bad"), "zeros": padded("") * 0}
    lacking = texts["zeros" if dropped == "zeros" else "null"]
    for caption, states, lacks in rows.values():
        assert bool(lacks) == (caption is None)
        given = lacking if caption is None else padded(caption)
        wanted = texts[dropped] if rate == 1 else given
        np.testing.assert_array_equal(as_numpy(states), wanted)


def test_a_null_that_could_not_be_encoded_is_said_where_clips_may_lack_the_text(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nulls = dict(latentcache.open_cache(url).field("umt5").nulls)
    nulls["null"] = dataclasses.replace(nulls["null"], message="NaN")
    monkeypatch.setattr("latentcache.reading.fields.read_nulls", lambda *_: nulls)
    options: Mapping[str, Any] = {"fields": ["umt5"], "caption_dropout": 0.1, "missing": "null"}
    with pytest.raises(latentcache.CacheError, match=r"missing 'null': .*NaN.*'leave_out'"):
        LatentLoader(url, dropped="negative", **options)
    LatentLoader(url, dropped="zeros", **options)


@pytest.mark.slow
def test_left_out_clips_and_where_go_together(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["a", "b", "c", None, "e", "f"])
    add(cache, status=3, umt5=text_field())
    where = [("key", "in", ["v0#0", "v3#0", "v4#0"])]
    loader = LatentLoader(cache.storage.url, batch_size=1, fields=["umt5"], where=where)
    assert sorted(by_key(list(loader), "key")) == ["v0#0", "v4#0"]
    assert loader.left_out == [{"umt5": 1}]


@pytest.mark.slow
def test_a_field_that_grows_changes_no_run_that_goes_on(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["a", "b", "c", "d", "e", "f"])
    add(cache, umt5=text_field())
    options: Mapping[str, Any] = {"batch_size": 1, "fields": ["umt5"], "seed": 3}
    wanted = list(LatentLoader(cache.storage.url, **options))
    going_on = LatentLoader(cache.storage.url, **options)
    stream = iter(going_on)
    found = [next(stream)]
    cache = relabel(cache, {"v0#0": "other", "v4#0": "else"})
    cache = grow(cache, ["new"])
    add(cache, "--update", umt5=text_field())
    found += [next(stream)]
    resumed = LatentLoader(cache.storage.url, **options)
    resumed.load_state_dict(going_on.state_dict())
    found += list(resumed)
    assert [batch["key"] for batch in found] == [batch["key"] for batch in wanted]
    assert all(torch.equal(a["umt5"], b["umt5"]) for a, b in zip(found, wanted, strict=True))
    newest = by_key(list(LatentLoader(cache.storage.url, **options)), "caption", "umt5")
    assert {"other", "else", "new"} <= {row[0] for row in newest.values()}
    for caption, states in newest.values():
        np.testing.assert_array_equal(as_numpy(states), padded(caption))


@pytest.mark.slow
def test_workers_of_a_data_loader_give_the_same(url: str) -> None:
    options = {"fields": ["umt5", "several"], "caption_dropout": 0.4}
    loader = LatentLoader(url, batch_size=3, seed=7, **options)
    found = list(DataLoader(loader, batch_size=None, num_workers=2))
    for one, other in zip(found, batches(url, **options), strict=True):
        assert all(same(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("of", "frames", "given"),
    [
        ("first_then_zeros", 9, {(0, 0), (1, 0), (2, 0), (3, 0)}),
        ("first_last_then_zeros", 9, {(0, 0), (1, 0), (2, 0), (3, 0), (3, 2)}),
        ("first_then_zeros", 1, {(0, 0), (1, 0), (2, 0), (3, 0)}),
    ],
)
def test_the_mask_of_wan_is_folded_by_its_stride(
    of: str, frames: int, given: set[tuple[int, int]]
) -> None:
    mask = wan_mask(of, Bucket(frames=frames, height=32, width=32), 4)
    assert mask.shape == (4, (frames - 1) // 4 + 1)
    assert {tuple(place) for place in mask.nonzero().tolist()} == given


@pytest.mark.slow
def test_a_view_changes_no_texts(url: str) -> None:
    options: dict[str, Any] = {"fields": ["umt5", "clip"], "caption_dropout": 0.5}
    names = ("umt5", "clip", "clip_mask", "dropped")
    whole = by_key(batches(url, **options), *names)
    viewed = by_key(batches(url, view=Window(1, start="first"), **options), *names)
    assert viewed.keys() == whole.keys()
    for key, values in whole.items():
        assert all(map(torch.equal, values, viewed[key]))
