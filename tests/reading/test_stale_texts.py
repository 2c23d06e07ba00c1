"""Values of fields whose clips have other texts now: no loader and no sample gives them in silence."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import latentcache
from latentcache import LatentLoader
from latentcache.core.dtypes import as_numpy
from latentcache.format.snapshot import current_index, publish
from latentcache.planning.create import take_step
from latentcache.planning.fields.planned import reopen_field
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.reading.column_history import ColumnHistory
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, padded, relabel, text_field
from tests.tools.planned import FAILED

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = ["one", "two", "three", "four"]
KEYS = [f"v{n}#0" for n in range(len(CAPTIONS)) if n not in FAILED]
CHANGED = "umt5: captions changed since; `resume` or `add-field --update`"


def clips_of(found: Any, *names: str, **options: Any) -> dict[str, dict[str, Any]]:
    """What a loader gives of each clip, by its key."""
    loader = found
    if not isinstance(found, LatentLoader):
        loader = LatentLoader(found, 1, fields=names or ["umt5"], **options)
    return {batch["key"][0]: {name: batch[name][0] for name in batch} for batch in loader}


def check(clips: Mapping[str, Mapping[str, Any]], *, lacking: Sequence[str] = ()) -> None:
    """Check that the states are those of every clip's caption."""
    assert sorted(clips) == sorted({*KEYS} - {*lacking})
    for clip in clips.values():
        np.testing.assert_array_equal(as_numpy(clip["umt5"]), padded(clip["caption"]))


def changed(planned: PlannedCache, name: str, values: Mapping[str, Any]) -> PlannedCache:
    """Change a column by key, as precompute does; every shard gets a table of its columns."""
    step = Step(kind="grow", num_relabelled=len(values))
    for shard in planned.planned_shards():
        table = planned.plan.rows(shard).select(["row", "key", "caption", "texts"])
        of_clips = zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True)
        new = pa.array([values.get(*clip) for clip in of_clips], table.schema.field(name).type)
        at = table.column_names.index(name)
        step.columns[shard] = table.set_column(at, name, new).drop_columns("key")
    taken = take_step(planned, step)
    assert taken is not None
    publish(taken.storage, current_index(taken.storage, taken.manifest))
    return taken


def update(url: str | Path, name: str = "umt5") -> None:
    assert run_inline("resume", url, "--field", name, "run.runner=local")[0] == 0


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    """A cache of two shards with a text field."""
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=2)
    add(cache, umt5=text_field())
    return cache


def test_a_clip_whose_caption_changed_since_is_left_out_until_it_is_encoded(
    cache: PlannedCache,
) -> None:
    relabel(cache, {"v0#0": "other"})
    loader = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    assert loader.left_out == [{CHANGED: 1}]
    check(clips_of(loader), lacking=["v0#0"])
    found = latentcache.open_cache(cache.storage.url)
    for sample in (found["v0#0"], found.stored_samples([found.number("v0#0")])[0]):
        with pytest.raises(KeyError, match="captions changed since; `resume`"):
            sample["umt5"]
    assert found.dataset(fields=["umt5"]).keys() == [key for key in KEYS if key != "v0#0"]
    nulls = clips_of(cache.storage.url, missing="null")
    assert {key for key, clip in nulls.items() if clip["umt5_missing"]} == {"v0#0"}
    np.testing.assert_array_equal(as_numpy(nulls["v0#0"]["umt5"]), padded(""))
    update(cache.storage.url)
    loader = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    assert loader.left_out == [{}]
    check(clips_of(loader))


def test_fields_of_which_one_is_not_up_to_date_pair_no_two_texts(tmp_path: Path) -> None:
    texts = [[f"v{n} x", f"v{n} y"] for n in range(4)]
    cache = cache_of(tmp_path, [None] * 4, texts=texts)
    add(cache, a=text_field(column="texts", calm=True))
    add(cache, b=text_field(column="texts", calm=True, salt=""))
    new = {f"v{n}#0": [f"v{n} new", f"v{n} x"] for n in range(1, 4)}
    changed(cache, "texts", new)
    update(cache.storage.url, "a")
    url = cache.storage.url
    assert sorted(clips_of(url, "a", "b")) == ["v0#0"]
    for key, clip in clips_of(url, "a", "b", missing="null").items():
        assert bool(clip["b_missing"]) == (key in new)
        text = new.get(key, texts[int(key[1])])[clip["a_choice"]]
        np.testing.assert_array_equal(as_numpy(clip["a"]), padded(text))
    sample = latentcache.open_cache(url)["v1#0"]
    np.testing.assert_array_equal(as_numpy(sample["a"]), padded("v1 new"))
    with pytest.raises(KeyError, match="captions changed since"):
        sample["b"]


def test_where_no_clip_is_left_it_is_said_why(cache: PlannedCache) -> None:
    relabel(cache, dict.fromkeys(KEYS, "other"))
    with pytest.raises(latentcache.ConfigError, match=r"all of the fields.*changed since"):
        LatentLoader(cache.storage.url, 1, fields=["umt5"])


def test_other_columns_other_clips_and_former_texts_make_no_value_stale(
    tmp_path: Path,
) -> None:
    texts = [[f"v{n} x"] for n in range(4)]
    cache = cache_of(tmp_path, CAPTIONS, texts=texts, shard_clips=2)
    add(cache, umt5=text_field())
    add(cache, several=text_field(column="texts", max_choices=1))
    new = {"v0#0": ["v0 x", "beyond what the field takes"], "v1#0": ["v1 x", " "]}
    cache = changed(cache, "texts", new)
    loader = LatentLoader(cache.storage.url, 1, fields=["umt5", "several"])
    assert loader.left_out == [{}]
    check(clips_of(loader))
    cache = changed(cache, "caption", {"v0#0": "other"})
    check(clips_of(cache.storage.url), lacking=["v0#0"])
    changed(cache, "caption", {"v0#0": "one"})
    check(clips_of(cache.storage.url))


@pytest.mark.parametrize("back", [False, True])
def test_a_value_that_waits_to_be_made_again_is_of_former_texts_unless_these_are_back(
    back: bool, cache: PlannedCache
) -> None:
    cache = changed(cache, "caption", {"v0#0": "other"})
    field = reopen_field(cache, "umt5")
    assert field.with_version("update", field.changed_rows())
    if back:
        cache = changed(cache, "caption", {"v0#0": "one"})
    check(clips_of(cache.storage.url), lacking=[] if back else ["v0#0"])
    if back:
        field = reopen_field(cache, "umt5")
        assert field.with_version("update", field.changed_rows())
        check(clips_of(cache.storage.url))


def test_a_loader_that_goes_on_with_another_snapshot_gives_no_states_of_other_captions(
    cache: PlannedCache,
) -> None:
    held = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    before = held.newest()
    relabel(cache, {"v0#0": "other"})
    held.set_epoch(1, held.newest())
    assert held.left_out == [{CHANGED: 1}]
    check(clips_of(held), lacking=["v0#0"])
    update(cache.storage.url)
    held.set_epoch(2, held.newest())  # of whose values it has the former ones
    check(clips_of(held), lacking=["v0#0"])
    held.set_epoch(3, before)
    assert held.left_out == [{}]
    check(clips_of(held))
    newer = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    newer.set_epoch(1, before)
    found = clips_of(newer)
    check(found)
    assert found["v0#0"]["caption"] == "one"


def test_states_and_copies_of_a_loader_leave_out_the_same(cache: PlannedCache) -> None:
    relabel(cache, {"v0#0": "other"})
    loader = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    state, wanted = loader.state_dict(), [batch["key"] for batch in loader]
    assert ["v0#0"] not in wanted
    again = pickle.loads(pickle.dumps(loader))
    again.set_epoch(0)
    assert [batch["key"] for batch in again] == wanted
    update(cache.storage.url)
    resumed = LatentLoader(cache.storage.url, 1, fields=["umt5"])
    resumed.load_state_dict(state)
    assert [batch["key"] for batch in resumed] == wanted


def test_a_copied_value_of_a_former_text_is_left_out_and_not_exported(
    cache: PlannedCache, tmp_path: Path
) -> None:
    relabel(cache, {"v0#0": "other"})
    copy = tmp_path / "copy"
    assert run_inline("copy", cache.storage.url, copy)[0] == 0
    check(clips_of(copy), lacking=["v0#0"])
    out = tmp_path / "out"
    asked = ("export", copy, out, "--to", "webdataset", "--field", "umt5")
    status, printed = run_inline(*asked)
    assert status == 2
    assert "1 clip with other texts or files now" in printed
    update(copy)
    check(clips_of(copy))


def test_tables_are_read_only_of_shards_that_changed_since_their_values_were_made(
    cache: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = set(), ColumnHistory._read

    def noted(self: ColumnHistory, *key: Any) -> pa.Table:
        read.add(key[0].number)
        return whole(self, *key)

    monkeypatch.setattr(ColumnHistory, "_read", noted)
    check(clips_of(cache.storage.url))
    assert not read
    cache = relabel(cache, {"v0#0": "other"})
    check(clips_of(cache.storage.url), lacking=["v0#0"])
    assert read == {0}
    read.clear()
    relabel(cache, {"v0#0": "another", "v1#0": "one more"})
    update(cache.storage.url)
    check(clips_of(cache.storage.url))
    assert not read
