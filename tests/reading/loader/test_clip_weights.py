"""Clips of weights: what a corpus says, what a loader takes, on real small caches of pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import latentcache
from latentcache.config.files import load_config
from latentcache.corpus.sources import read_corpus
from latentcache.errors import CacheError, ConfigError, LatentCacheError
from latentcache.format.columns import WEIGHT
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.caches import make_config, run_inline
from tests.tools.synthetic import write_cache
from tests.tools.tars import write_tar

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]  # the caches are encoded

#: A picture's weight; 0.5 of four, so that some come in each epoch.
WEIGHTS = {"a": 2.5, "b": 1.0, "c": 0.0, "d": 3.0, **{f"h{n}": 0.5 for n in range(4)}}
EPOCHS = 8


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for n, name in enumerate(WEIGHTS):
        noise = np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return folder


def precompute(folder: Path, **corpus: Any) -> latentcache.Cache:
    clips = {"frames": 1, "select": "first", "size": [32, 32]}
    config = make_config(folder, folder, str(folder / "cache"), clips=clips, corpus=corpus)
    status, out = run_inline("precompute", config)
    assert status == 0, out
    return latentcache.open_cache(str(folder / "cache"))


def table(folder: Path, values: Sequence[object]) -> str:
    lines = [
        json.dumps({"image": f"pictures/{name}.png", "times": value})
        for name, value in zip(WEIGHTS, values, strict=True)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return str(folder / "corpus.jsonl")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    folder = tmp_path_factory.mktemp("weighted")
    pictures(folder / "pictures")
    source = table(folder, list(WEIGHTS.values()))
    return precompute(folder, source=source, columns={"image": "image"}, weight="times")


def stems(keys: Sequence[str]) -> Counter[str]:
    return Counter(Path(key.partition("#")[0]).stem for key in keys)


def keys(loader: LatentLoader) -> list[str]:
    return [key for batch in loader for key in batch["key"]]


def test_each_clip_comes_its_weight_and_is_stored_once(cache: latentcache.Cache) -> None:
    assert len(cache) == len(WEIGHTS)
    loader = LatentLoader(cache, batch_size=2)
    epochs = []
    for epoch in range(EPOCHS):
        assert loader.epoch == epoch
        expected = len(loader)
        batches = list(loader)
        assert len(batches) == expected
        epochs.append(stems([key for batch in batches for key in batch["key"]]))
    total = sum(epochs, Counter[str]())
    for name, weight in WEIGHTS.items():
        assert total[name] == weight * EPOCHS
        assert all(found[name] in (int(weight), -int(-weight // 1)) for found in epochs)
    assert len({tuple(sorted(found.items())) for found in epochs}) > 1
    assert stems(keys(LatentLoader(cache, seed=3))) != epochs[0]
    assert stems(keys(LatentLoader(cache, clip_weight=None))) == Counter(list(WEIGHTS))


def test_ranks_and_workers_share_the_same_epoch(cache: latentcache.Cache) -> None:
    whole = LatentLoader(cache, batch_size=1)
    for epoch in range(2):
        one = keys(whole)
        for world_size in (2, 3):
            parts = []
            for rank in range(world_size):
                loader = LatentLoader(
                    cache, batch_size=1, rank=rank, world_size=world_size, uneven="exact"
                )
                loader.set_epoch(epoch)
                assert len(loader) == len(one[rank::world_size])
                parts.append(keys(loader))
                assert parts[-1] == one[rank::world_size]


@pytest.mark.long
def test_workers_of_a_data_loader_give_the_same_order(cache: latentcache.Cache) -> None:
    one = LatentLoader(cache, batch_size=2)
    several = LatentLoader(cache, batch_size=2)
    several.set_epoch(1)
    one.set_epoch(1)
    found = DataLoader(several, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert [batch["key"] for batch in found] == [batch["key"] for batch in one]


def test_a_run_that_was_stopped_goes_on_where_it_was_with_any_ranks(
    cache: latentcache.Cache,
) -> None:
    expected = []
    loader = LatentLoader(cache, batch_size=1)
    for _ in range(2):
        expected += keys(loader)
    first = LatentLoader(cache, batch_size=1)
    stopped = len(list(first)) + 4
    taken = [batch["key"][0] for _, batch in zip(range(4), first, strict=False)]
    state = json.loads(json.dumps(first.state_dict()))
    assert taken == expected[stopped - 4 : stopped]
    rest = []
    for rank in range(2):
        resumed = LatentLoader(cache, batch_size=1, rank=rank, world_size=2, uneven="exact", seed=0)
        state["uneven"] = "exact"
        resumed.load_state_dict(state)
        rest.append(keys(resumed))
    merged = [key for pair in zip(*rest, strict=False) for key in pair]
    left = expected[stopped:]
    assert merged == left[: len(merged)]
    assert sum(map(len, rest)) == len(left)


def test_a_state_of_other_weights_is_refused(cache: latentcache.Cache) -> None:
    state = LatentLoader(cache).state_dict()
    with pytest.raises(CacheError, match=f"clip_weight: {WEIGHT} in the state, None here"):
        LatentLoader(cache, clip_weight=None).load_state_dict(state)
    state = LatentLoader(cache, clip_weight=None).state_dict()
    with pytest.raises(CacheError, match=f"clip_weight: None in the state, {WEIGHT} here"):
        LatentLoader(cache).load_state_dict(state)


def test_copies_of_a_clip_have_noise_of_their_own_and_one_copy_that_of_its_epoch(
    tmp_path: Path,
) -> None:
    written = write_cache(str(tmp_path), stored="moments", buckets={"5x32x32": 4}, dtype="float32")
    cache = latentcache.open_cache(written.url)  # its scores are its numbers: 0, 1, 2, 3
    weighted = LatentLoader(cache, batch_size=1, clip_weight="score")
    once = LatentLoader(cache, batch_size=1)
    draws: dict[str, list[torch.Tensor]] = {}
    for _ in range(2):
        for batch in weighted:
            draws.setdefault(batch["key"][0], []).append(batch["latents"][0])
    scores = dict(zip(*(cache.table()[c].to_pylist() for c in ("key", "score")), strict=True))
    assert {key: len(found) for key, found in draws.items()} == {
        key: 2 * score for key, score in scores.items() if score
    }
    for found in draws.values():
        assert len({latents.numpy().tobytes() for latents in found}) == len(found)
    plain = [{b["key"][0]: b["latents"][0] for b in once} for _ in range(2)]
    single = next(key for key, score in scores.items() if score == 1)
    for epoch in range(2):
        assert torch.equal(draws[single][epoch], plain[epoch][single])


def test_conditions_and_mixtures_count_weights(cache: latentcache.Cache, tmp_path: Path) -> None:
    chosen = LatentLoader(cache, batch_size=1, where="source like '%a.png' or source like '%d.png'")
    assert Counter(stems(keys(chosen)) + stems(keys(chosen))) == Counter({"a": 5, "d": 6})
    mixed = LatentLoader([cache, cache], batch_size=1)
    found = [keys(mixed) for _ in range(EPOCHS)]
    assert {len(epoch) for epoch in found} == {len(mixed)}
    counts = stems([key for epoch in found for key in epoch])
    for name, weight in WEIGHTS.items():
        assert abs(counts[name] - 2 * weight * EPOCHS) <= 2 * max(1, weight)


@pytest.mark.parametrize("weight", [2.5, {"pic*/a.png": 2.5, "*": 0}])
def test_a_folder_has_one_weight_or_those_of_patterns(tmp_path: Path, weight: Any) -> None:
    pictures(tmp_path / "pictures")
    config = make_config(tmp_path, tmp_path, "none", corpus={"weight": weight})
    found = read_corpus(load_config(str(config)).corpus).table
    wanted = [2.5 if weight == 2.5 or "a.png" in name else 0 for name in found["name"].to_pylist()]
    assert found[WEIGHT].to_pylist() == wanted


def test_a_tar_file_and_a_kept_column_give_weights(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    data = (tmp_path / "pictures" / "a.png").read_bytes()
    write_tar(tmp_path / "one.tar", [("a.png", data), ("a.json", b'{"times": 4}'), ("b.png", data)])
    corpus = {"source": str(tmp_path / "one.tar"), "weight": "times"}
    config = make_config(tmp_path, tmp_path, "none", corpus=corpus)
    found = read_corpus(load_config(str(config)).corpus).table
    assert found[WEIGHT].to_pylist() == [4, 1]
    assert "times" not in found.column_names
    config = make_config(tmp_path, tmp_path, "none", corpus={**corpus, "keep": ["times"]})
    found = read_corpus(load_config(str(config)).corpus).table
    assert found["times"].to_pylist() == [4, None]


def test_weights_change_without_encoding_and_a_cache_as_corpus_carries_them_over(
    tmp_path: Path,
) -> None:
    pictures(tmp_path / "pictures")
    options: dict[str, Any] = {"columns": {"image": "image"}, "weight": "times"}
    first = precompute(tmp_path, source=table(tmp_path, [1] * len(WEIGHTS)), **options)
    assert stems(keys(LatentLoader(first))) == Counter(list(WEIGHTS))
    again = precompute(tmp_path, source=table(tmp_path, [2] * len(WEIGHTS)), **options)
    assert len(again) == len(first)
    assert stems(keys(LatentLoader(again))) == Counter(list(WEIGHTS) * 2)
    for keep in ([], ["caption_of"]):
        source = {"source": f"cache://{tmp_path / 'cache'}", "keep": keep}
        config = load_config(str(make_config(tmp_path, tmp_path, "none", corpus=source)))
        if keep:
            with pytest.raises(LatentCacheError, match="has kept no column 'caption_of'"):
                read_corpus(config.corpus)
        else:
            assert read_corpus(config.corpus).table[WEIGHT].to_pylist() == [2] * len(WEIGHTS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1], "is -1 for"),
        (["many"], "is to hold numbers"),
        ([[1]], "a weight is a number"),
        ([float("nan")], "is nan for"),
        ([float("inf")], "is inf for"),
        ([1e18], r"is 1e\+18 for .* a number from 0 to 1,000,000"),  # as every loader says
    ],
)
def test_what_is_no_weight_is_refused_with_the_source(
    tmp_path: Path, values: list[object], said: str
) -> None:
    pictures(tmp_path / "pictures")
    source = table(tmp_path, values * len(WEIGHTS))
    corpus = {"source": source, "columns": {"image": "image"}, "weight": "times"}
    config = load_config(str(make_config(tmp_path, tmp_path, "none", corpus=corpus)))
    with pytest.raises(LatentCacheError, match=said):
        read_corpus(config.corpus)


@pytest.mark.parametrize(
    ("weight", "said"),
    [("times", "corpus.weight names columns of a table"), (-1, "greater than or equal to 0")],
)
def test_weights_that_a_folder_cannot_have_are_refused(
    tmp_path: Path, weight: object, said: str
) -> None:
    pictures(tmp_path / "pictures")
    config = make_config(tmp_path, tmp_path, "none", corpus={"weight": weight})
    with pytest.raises(LatentCacheError, match=said):
        read_corpus(load_config(str(config)).corpus)


def test_a_loader_refuses_columns_that_are_no_weights(cache: latentcache.Cache) -> None:
    with pytest.raises(ConfigError, match="no column 'wieght'"):
        LatentLoader(cache, clip_weight="wieght")
    with pytest.raises(ConfigError, match="a weight is a number"):
        LatentLoader(cache, clip_weight="key")
    with pytest.raises(ConfigError, match=r"no clip of .* is chosen"):
        LatentLoader(cache, where=f"{WEIGHT} = 0")


@pytest.mark.long
def test_a_cache_that_has_a_column_of_weights_only_since_later_shards_uses_it(
    tmp_path: Path,
) -> None:
    pictures(tmp_path / "pictures")
    precompute(tmp_path, source=str(tmp_path / "pictures"))
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (32, 32)).save(more / "new.png")
    grown = precompute(tmp_path, source=str(more), weight=3)
    found = stems(keys(LatentLoader(grown)))
    assert found == Counter({**dict.fromkeys(WEIGHTS, 1), "new": 3})
    assert isinstance(grown.table(), pa.Table)
