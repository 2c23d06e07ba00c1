"""Fields of the same texts give the same one of a clip, however it is read, whichever of them failed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentcache
from latentcache import LatentLoader, Window
from latentcache.core.dtypes import as_numpy
from latentcache.reading.fields import Entry, FieldRow, chosen_text
from tests.tools.fields import add, cache_of, padded, text_field
from tests.tools.planned import FAILED

#: `sound` encodes all of them; `ill` fails those that begin with CLIP; `short` has the first of each.
TEXTS = [
    ["a 0", "a 1"],
    ["CLIP b", "b 1", "b 2"],
    ["c 0", "CLIP c", "c 2"],
    ["d 0", "d 1"],
    ["CLIP e", "e 1"],
    ["f 0", "f 1", "CLIP f"],
]
KEYS = [f"v{n}#0" for n in range(len(TEXTS)) if n not in FAILED]
EPOCHS = 12


@pytest.fixture(scope="module", name="url")
def url_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with two fields of the same texts."""
    cache = cache_of(tmp_path_factory.mktemp("pair"), [None] * len(TEXTS), texts=TEXTS)
    add(cache, status=3, ill=text_field(column="texts"))
    add(cache, sound=text_field(column="texts", calm=True))
    return cache.storage.url


@pytest.fixture(scope="module", name="apart")
def apart_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with two fields that have no text in common of some clips."""
    cache = cache_of(tmp_path_factory.mktemp("apart"), [None] * len(TEXTS), texts=TEXTS)
    add(cache, status=3, ill=text_field(column="texts"))
    add(cache, short=text_field(column="texts", calm=True, max_choices=1))
    return cache.storage.url


def clips_of(loader: LatentLoader) -> list[dict[str, Any]]:
    """What all batches of some epochs say of each clip."""
    found = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            names = [name for name in batch if name not in ("latents", "bucket")]
            found += [{name: batch[name][n] for name in names} for n in range(len(batch["key"]))]
    return found


@pytest.mark.parametrize("options", [{}, {"view": Window(1, start="first")}])
def test_fields_of_the_same_texts_give_the_same_one(url: str, options: dict[str, Any]) -> None:
    loader = LatentLoader(url, batch_size=2, fields=["ill", "sound"], **options)
    seen: dict[str, set[int]] = {}
    for clip in clips_of(loader):
        assert clip["ill_choice"] == clip["sound_choice"]
        text = clip["texts"][clip["ill_choice"]]
        for name in ("ill", "sound"):
            np.testing.assert_array_equal(as_numpy(clip[name]), padded(text))
        seen.setdefault(clip["key"], set()).add(clip["ill_choice"])
    assert loader.left_out == [{}]
    assert seen == {
        key: {k for k, text in enumerate(TEXTS[int(key[1])]) if not text.startswith("CLIP")}
        for key in KEYS
    }


def test_a_field_by_itself_gives_every_text_that_it_has(url: str) -> None:
    found = clips_of(LatentLoader(url, batch_size=2, fields=["sound"]))
    assert {clip["sound_choice"] for clip in found if clip["key"] == "v4#0"} == {0, 1}


def test_clips_without_a_text_in_common_are_left_out_or_have_the_null(apart: str) -> None:
    lacking = {key for key in ("v1#0", "v4#0") if key in KEYS}
    loader = LatentLoader(apart, batch_size=2, fields=["ill", "short"])
    assert {clip["key"] for clip in clips_of(loader)} == {*KEYS} - lacking
    assert loader.left_out == [{"ill": len(lacking), "short": len(lacking)}]
    loader = LatentLoader(apart, batch_size=2, fields=["ill", "short"], missing="null")
    for clip in clips_of(loader):
        lacks = clip["key"] in lacking
        assert bool(clip["ill_missing"]) == bool(clip["short_missing"]) == lacks
        wanted = padded("" if lacks else clip["texts"][0])
        np.testing.assert_array_equal(as_numpy(clip["ill"]), wanted)
        np.testing.assert_array_equal(as_numpy(clip["short"]), wanted)


def test_samples_have_the_first_text_in_common(url: str) -> None:
    cache = latentcache.open_cache(url)
    for samples in (cache, cache.dataset(fields=["ill", "sound"])):
        for key in KEYS:
            texts = TEXTS[int(key[1])]
            first = 1 if texts[0].startswith("CLIP") else 0
            for name in ("ill", "sound"):
                sample = samples[key]
                np.testing.assert_array_equal(as_numpy(sample[name]), padded(texts[first]))
                assert sample[f"{name}_choice"] == first
                assert sample[f"{name}_tokens"] == len(texts[first]) + 1
    alone = cache.dataset(fields=["sound"])["v4#0"]
    np.testing.assert_array_equal(as_numpy(alone["sound"]), padded("CLIP e"))


def test_samples_without_a_text_in_common_have_none_and_are_no_clips_of_both(apart: str) -> None:
    cache = latentcache.open_cache(apart)
    with pytest.raises(KeyError, match="ill"):
        cache["v4#0"]["ill"]
    both = cache.dataset(fields=["ill", "short"])
    with pytest.raises(KeyError, match="not among those that"):
        both["v4#0"]
    assert cache.dataset(fields=["ill"])["v4#0"]["ill_choice"] == 1


@pytest.mark.parametrize("damaged", ["index.parquet", "field.json"])
def test_a_damaged_field_of_another_column_keeps_no_sample_back(
    damaged: str, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path, ["a", "b"], texts=[["CLIP x", "y"], ["z"]])
    add(cache, status=3, ill=text_field(column="texts"))
    add(cache, sound=text_field(column="texts", calm=True))
    add(cache, other=text_field())
    path = tmp_path / "cache/fields/other" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    sample = latentcache.open_cache(cache.storage.url)["v0#0"]
    assert (sample["sound_choice"], sample["ill_choice"]) == (1, 1)
    with pytest.raises(latentcache.CorruptionError, match="other"):
        sample["other"]


def test_a_damaged_field_of_the_same_column_is_said(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["a"], texts=[["x", "y"]])
    add(cache, one=text_field(column="texts"), two=text_field(column="texts", calm=True))
    path = tmp_path / "cache/fields/two/index.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(latentcache.CorruptionError, match="two"):
        latentcache.open_cache(cache.storage.url)["v0#0"]["one"]


def test_each_text_in_common_is_as_likely() -> None:
    rows = [_row(5, {0, 2, 3, 4}), _row(4, {0, 1, 2, 3})]
    found = Counter(chosen_text(rows, number) for number in range(4 * 3 * 100))
    assert found == {0: 400, 2: 400, 3: 400}
    assert chosen_text(rows, 0) == 0
    assert chosen_text([_row(2, {0}), _row(2, {1})], 3) is None


def test_the_choice_where_nothing_failed_is_the_number_by_itself() -> None:
    rows = [_row(3, {0, 1, 2}), _row(3, {0, 1, 2})]
    assert [chosen_text(rows, n) for n in range(7)] == [n % 3 for n in range(7)]


def _row(num_choices: int, there: set[int]) -> FieldRow:
    entries = tuple(
        Entry(version=1, choice=n, refs=(), tokens=(), lost_tokens=0) for n in sorted(there)
    )
    return FieldRow(num_choices=num_choices, entries=entries)
