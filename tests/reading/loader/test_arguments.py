"""Wrong arguments of a loader get one sentence, which names the argument; a loader says what it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from latentcache.errors import CacheError, ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = str(tmp_path_factory.mktemp("cache"))
    write_cache(folder, failed=FAILED)
    return open_cache(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({name: wrong}, rf"^{name} is {wrong!r}: it must be a whole number, {least} or more$")
            for name, least in {
                "batch_size": 1,
                "seed": 0,
                "rank": 0,
                "world_size": 1,
                "num_threads": 1,
                "prefetch_bytes": 1,
                "pool_bytes": 1,
                "bucket_run": 1,
                "epoch_batches": 1,
                "frames": 1,
            }.items()
            for wrong in (least - 1, 2.5, "8", True)
        ),
        *(
            ({name: wrong}, rf"^{name} is {wrong!r}: it must be True or False$")
            for name in ("shuffle", "drop_last", "normalise", "check", "follow")
            for wrong in ("no", 0, None)
        ),
        ({"where": "frames > 1000"}, "no clip of .* is chosen: none of .* fits .* Correct `where`"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"posterior": "mean"}, "posterior 'mean' is not one of sample, mode"),
        ({"uneven": "fill"}, "uneven 'fill' is not one of"),
        ({"world_size": 99}, "has too few for 99 ranks"),
        (
            {"columns": "caption"},
            r"columns is 'caption': give a list of names, such as \['caption'\]",
        ),
        ({"columns": ["captoin"]}, "Did you mean 'caption'"),
        *(
            ({name: wrong}, f"{name} is .*: give a list of names")
            for name in ("columns", "fields")
            for wrong in (5, b"x", [None], [1], {"a": 1}, np.arange(2), True)
        ),
        *(({name: 5}, f"{name} is 5: it must be text") for name in ("clip_weight", "dropped")),
        *(
            ({"caption_dropout": wrong}, "caption_dropout is .*; it is a part, from 0 to 1")
            for wrong in (None, "x", "0.1", [], True, -0.1, 1.1, math.nan, np.ones(2))
        ),
        *(
            ({name: wrong}, f"{name} .* is not one of")
            for name in ("posterior", "uneven", "on_damaged", "pad", "missing")
            for wrong in (None, 5, [], np.ones(2))
        ),
        ({"weights": b"x"}, "weights is b'x': it must be a list"),
        ({"dtype": torch.ones(2)}, "dtype .* is no type"),
        ({"weights": 0.5}, "weights is 0.5: it must be a list"),
        ({"weights": {"a": 1}}, "weights is .*: it must be a list"),
        ({"weights": [0]}, r"weights\[0\] is 0: it must be a number above 0"),
        ({"weights": ["1"]}, r"weights\[0\] is '1'"),
        ({"weights": [math.inf]}, r"weights\[0\] is inf"),
        ({"weights": [1, 2]}, r"weights \[1.0, 2.0\] for 1 caches"),
        ({"batch_size": 99, "drop_last": True}, "make 0 batches of 99 .* Use a smaller batch_size"),
        (
            {"dtype": "bfloat_16"},
            "dtype 'bfloat_16' is no type of floating .* Did you mean 'bfloat16'",
        ),
        ({"dtype": "int8"}, "dtype 'int8' is no type of floating point numbers"),
        ({"dtype": torch.bool}, r"dtype torch.bool is no type"),
        ({"dtype": 16}, "dtype 16 is no type"),
        ({"dtype": "nn"}, "dtype 'nn' is no type"),
        ({"device": "gpu"}, "device='gpu' is not a device"),
        ({"where": lambda row: row["score"] > 2}, "where: <function .* Functions are not taken"),
        ({"where": 5}, "where: 5 is no condition"),
        ({"where": {"score": 5}}, "where: .* is no condition"),
        ({"where": [("score", ">")]}, "where: .* is no condition"),
        ({"where": "scor > 2"}, "where: there is no column 'scor'. Did you mean 'score'"),
        ({"where": "score = 'x'"}, "where: score is a number and 'x' is text"),
        ({"where": pc.field("scor") > 2}, "where: .* cannot be evaluated"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], said: str, cache: Cache
) -> None:
    with pytest.raises(ConfigError, match=said):
        LatentLoader(cache, **options)


@pytest.mark.parametrize("caches", [None, 5, [], [None], {"a": 1}])
def test_what_is_no_cache_is_refused(caches: Any) -> None:
    with pytest.raises(
        ConfigError, match="is no cache: give a URL, an open cache, or a list of them"
    ):
        LatentLoader(caches)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({"expect": wrong}, "expect is .*: give values by name")
            for wrong in ("channels", 16, ["channels"])
        ),
        *(
            ({"storage_options": wrong}, "storage_options is .*: give values by name")
            for wrong in ("anon", 5, [("a", 1)], {1: 2}, np.zeros(2))
        ),
        *(
            ({"disk_cache": wrong}, "disk_cache is .*: give the path")
            for wrong in (5, [], b"x", True)
        ),
        *(
            ({"disk_cache_bytes": wrong}, "disk_cache_bytes is .*: it must be a whole number, 1")
            for wrong in (0, "8", 2.5, True, None)
        ),
        *(({"url": wrong}, "is no cache: give its URL") for wrong in (None, 5, b"x", ["a"])),
    ],
)
def test_what_a_cache_is_opened_with_is_checked(
    cache: Cache, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        open_cache(**{"url": cache.storage.url, **options})


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda cache: cache.table("caption"), r"columns is 'caption': give a list of names"),
        (lambda cache: cache.table(5), "columns is 5: give a list of names"),
        (lambda cache: cache.table([None]), r"columns is \[None\]: give a list of names"),
        (lambda cache: cache.field(5), "field is 5: it must be text"),
        (lambda cache: cache.field(["a"]), r"field is \['a'\]: it must be text"),
        (lambda cache: cache.decode(0, encoder="dct"), "encoder is 'dct': give values by name"),
    ],
)
def test_what_a_cache_is_asked_is_checked(cache: Cache, ask: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ask(cache)


def test_epochs_and_states_that_make_no_sense_are_refused(cache: Cache) -> None:
    loader = LatentLoader(cache)
    for wrong in (-1, 0.5, "1", None):
        with pytest.raises(ConfigError, match=f"epoch is {wrong!r}: it must be a whole number"):
            loader.set_epoch(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_batches is -1"):
        loader.state_dict(num_batches=-1)
    for state in (None, 5, "state", []):
        with pytest.raises(CacheError, match="Load what state_dict returned"):
            loader.load_state_dict(state)  # type: ignore[arg-type]


def test_buckets_that_drop_last_would_leave_out_are_named_with_the_remedy(cache: Cache) -> None:
    """The message's condition, taken as it is, leaves them out on purpose."""
    with pytest.raises(
        ConfigError, match=r"whole buckets .* batch_size=6 clips: 1x32x48\."
    ) as caught:
        LatentLoader(cache, batch_size=6, drop_last=True)
    where = str(caught.value).partition('where="')[2].partition('"')[0]
    loader = LatentLoader(cache, batch_size=6, drop_last=True, where=where)
    assert {batch["bucket"] for batch in loader} == {"5x32x32"}


@pytest.mark.parametrize(
    "dtype", ["float32", "torch.float32", torch.float32, np.float32, np.dtype("float32")]
)
def test_a_dtype_has_several_names(dtype: Any, cache: Cache) -> None:
    assert next(iter(LatentLoader(cache, dtype=dtype)))["latents"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, ml_dtypes.bfloat16])
def test_bfloat16_has_several_names(dtype: Any, tmp_path: Path) -> None:
    write_cache(str(tmp_path), dtype="float32")
    assert next(iter(LatentLoader(str(tmp_path), dtype=dtype)))["latents"].dtype == torch.bfloat16


@pytest.mark.slow
def test_ids_are_given_as_integers_only(tmp_path: Path) -> None:
    write_cache(str(tmp_path), stored="ids", dtype="uint16")
    assert next(iter(LatentLoader(str(tmp_path), dtype="int64")))["latents"].dtype == torch.int64
    with pytest.raises(ConfigError, match="dtype 'float32' is no type of integers"):
        LatentLoader(str(tmp_path), dtype="float32")


def test_an_integer_type_that_is_too_small_for_the_ids_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path), stored="ids", dtype="uint16")
    size = open_cache(str(tmp_path)).spec.ids.codebook_size
    with pytest.raises(ConfigError, match=f"dtype 'uint8' holds ids up to 255, .* has {size}"):
        LatentLoader(str(tmp_path), dtype="uint8")


def test_numbers_of_numpy_are_numbers(cache: Cache) -> None:
    """Also in a state, which is JSON, and for what is drawn."""
    options = {"batch_size": 2, "seed": 3, "rank": 1, "world_size": 2, "epoch_batches": 4}
    loader = LatentLoader(cache, **{name: np.int64(value) for name, value in options.items()})
    loader.set_epoch(np.int64(1))  # type: ignore[arg-type]
    plain = LatentLoader(cache, **options)  # type: ignore[arg-type]
    plain.set_epoch(1)
    next(iter(loader)), next(iter(plain))
    state = json.loads(json.dumps(loader.state_dict()))
    assert state == loader.state_dict() == plain.state_dict()
    assert state["batches"] == 2
    loader.load_state_dict(state)


def test_ranks_without_a_batch_are_exact_too(cache: Cache) -> None:
    clips = LatentLoader(cache, batch_size=1, uneven="exact")
    numbers = [
        len(list(LatentLoader(cache, 1, uneven="exact", rank=rank, world_size=len(clips) + 1)))
        for rank in range(len(clips) + 1)
    ]
    assert numbers == [1] * len(clips) + [0]


def test_an_epoch_that_is_chosen_in_the_middle_of_another_begins_at_its_start(cache: Cache) -> None:
    loader = LatentLoader(cache, batch_size=1)
    batches = iter(loader)
    next(batches)
    loader.set_epoch(3)
    next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (3, 0)


@pytest.mark.slow
def test_where_takes_text_expressions_and_filters(cache: Cache) -> None:
    forms: list[Any] = [
        "score > 2 and caption != ''",
        (pc.field("score") > 2) & (pc.field("caption") != ""),
        [("score", ">", 2), ("caption", "!=", "")],
    ]
    found = [[b["key"] for b in LatentLoader(cache, where=form)] for form in forms]
    assert found[0]
    assert found[0] == found[1] == found[2]
    lasting = LatentLoader(cache, where="duration_s > 0.3")  # computed from start_s and end_s
    assert {batch["bucket"] for batch in lasting} == {"5x32x32"}


@pytest.mark.parametrize("make", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 4}, {"batch_size": 4, "collate_fn": list}], ids=str
)
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_dataloader_with_a_batch_size_is_refused(
    options: dict[str, Any], make: Any, cache: Cache
) -> None:
    with pytest.raises(
        ConfigError, match=r"batches of batches: .* DataLoader\(loader, batch_size=None\)"
    ):
        next(iter(make(LatentLoader(cache), **options)))
    assert next(iter(make(LatentLoader(cache), batch_size=None)))["key"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_dataloader_with_workers_and_a_batch_size_is_refused(cache: Cache) -> None:
    data = DataLoader(LatentLoader(cache), batch_size=2, num_workers=1)
    with pytest.raises(ConfigError, match="batches of batches"):
        next(iter(data))


def test_a_loader_says_what_it_is(cache: Cache) -> None:
    loader = LatentLoader(cache, 3, seed=7, rank=1, world_size=2)
    said = repr(loader)
    assert f"14 clips of {cache.storage.url}, 2 buckets, batch_size 3" in said
    assert f"shuffled with seed 7: {len(loader)} batches for rank 1 of 2, epoch 0)" in said
    assert "in order: 1 batch for rank" in repr(
        LatentLoader(cache, 16, shuffle=False, where="bucket like '5%'")
    )
    both = repr(LatentLoader([cache, cache], 3))
    assert both.count("14 clips of") == 2
