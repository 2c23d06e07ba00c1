"""Fields are added to a cache that is there, finished, updated and dropped; the rest of it stays."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorstore
import zarr

import latentcache
from jobs import fields
from latentcache.config.fields import parse_fields
from latentcache.core.dtypes import as_numpy
from latentcache.errors import CacheError, UnreachableError
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import FIELDS
from latentcache.format.manifest import read_manifest
from latentcache.format.rounds import ROUNDS
from latentcache.planning.create import repair_cache
from latentcache.planning.fields.planned import plan_field, reopen_field
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files, run_inline
from tests.tools.encoders.hashed_text import COUNTED, states
from tests.tools.fields import (
    FAMILY,
    add,
    cache_of,
    grow,
    padded,
    relabel,
    text_field,
    write_fields,
)
from tests.tools.planned import FAILED, fill_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = [f"caption {n % 6}" for n in range(10)]


@pytest.fixture(name="counted")
def counted_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has a line per text that was encoded."""
    path = tmp_path / "texts"
    monkeypatch.setenv(COUNTED, str(path))
    return path


@pytest.fixture(name="cache", params=["zarr", "parquet"])
def cache_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> PlannedCache:
    return cache_of(tmp_path, CAPTIONS, format=request.param)


def encoded(counted: Path) -> list[str]:
    """The texts that were encoded since, but those that stand for dropped ones."""
    lines = [line for line in counted.read_text().splitlines() if line] if counted.exists() else []
    counted.unlink(missing_ok=True)
    return sorted(lines)


def texts_of(url: str, field: str = "umt5", length: int = 32) -> dict[str, str | None]:
    """Each ok clip's caption, where the field holds that caption's states; None where it lacks the clip."""
    cache, found = latentcache.open_cache(url), {}
    for sample in (cache[n] for n in range(len(cache))):
        try:
            states_LD = as_numpy(sample[field])
        except KeyError:
            found[sample["key"]] = None
            continue
        np.testing.assert_array_equal(states_LD, padded(sample["caption"], length))
        found[sample["key"]] = sample["caption"]
    return found


def outside(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith(f"{FIELDS}/")}


@pytest.mark.slow
def test_a_field_is_added_beside_what_is_there(cache: PlannedCache, counted: Path) -> None:
    url = cache.storage.url
    before = read_files(Path(url))
    add(cache, umt5=text_field())
    after = read_files(Path(url))
    assert outside(after) == before
    assert encoded(counted) == sorted(set(CAPTIONS))
    ok = {f"v{n}#0": CAPTIONS[n] for n in range(10) if n not in FAILED}
    assert texts_of(url) == ok


@pytest.mark.slow
def test_what_is_done_is_not_done_again(cache: PlannedCache, counted: Path) -> None:
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    encoded(counted)
    add(cache, umt5=text_field())
    run_inline("resume", cache.storage.url)
    assert encoded(counted) == []
    assert read_files(Path(cache.storage.url)) == before


@pytest.mark.slow
def test_an_array_beside_the_states_comes_with_them(cache: PlannedCache) -> None:
    add(cache, clip=text_field(pooled=True))
    sample = latentcache.open_cache(cache.storage.url)[0]
    expected = states(sample["caption"], 32).mean(axis=0)
    np.testing.assert_allclose(sample["clip.pooled"].float().numpy(), expected, rtol=0.01)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [8, 128])
def test_padding_is_not_stored_and_comes_back(tmp_path: Path, side: str, length: int) -> None:
    cache = cache_of(tmp_path, ["", "short", "x" * 100])
    add(cache, umt5=text_field(length=length, side=side, padding="mask", missing="empty"))
    opened = latentcache.open_cache(cache.storage.url)
    for n in range(len(opened)):
        expected = padded(opened[n]["caption"] or "", length, side=side)
        np.testing.assert_array_equal(as_numpy(opened[n]["umt5"]), expected)
        assert opened[n]["umt5_tokens"] == min(length, len(opened[n]["caption"] or "") + 1)
    table = pq.read_table(next(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*.parquet")))
    lost = [max(0, len(text) + 1 - length) for text in ("", "short", "x" * 100)]
    assert table["lost_tokens"].to_pylist() == lost


def test_other_readers_see_padded_arrays(tmp_path: Path) -> None:
    captions = ["one", "two words", None, "x" * 300]
    cache = cache_of(tmp_path, captions, shard_clips=4)
    add(cache, status=3, umt5=text_field(length=192))
    expected = np.stack([padded(c, 192) if c else np.zeros_like(padded("", 192)) for c in captions])
    array = "fields/umt5/000001/5x64x96"
    zarred = zarr.open_array(Path(cache.storage.url) / array, mode="r")
    np.testing.assert_array_equal(zarred[:], expected)
    store = {"driver": "file", "path": str(Path(cache.storage.url) / array)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
    np.testing.assert_array_equal(opened.read().result(), expected)


@pytest.mark.slow
def test_other_readers_see_tables_and_parquet_shards(tmp_path: Path) -> None:
    captions = ["one", "two words", "x" * 300]
    cache = cache_of(tmp_path, captions, format="parquet")
    add(cache, umt5=text_field(length=64))
    folder = Path(cache.storage.url) / "fields/umt5"
    table = pq.read_table(folder / "000001/5x64x96").sort_by("row")
    rows = [np.frombuffer(b"".join(row), "<u2") for row in table["latents"].to_pylist()]
    expected = [padded(caption, 64).view("<u2").reshape(-1) for caption in captions]
    np.testing.assert_array_equal(np.stack(rows), np.stack(expected))
    tokens = [min(64, len(caption) + 1) for caption in captions]
    assert pq.read_table(folder / "samples/000001").sort_by("row")["tokens"].to_pylist() == tokens
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT tokens, lost_tokens FROM '{folder}/samples/000001/*/*.parquet' ORDER BY row"
    assert duckdb.sql(query).fetchall() == [
        (n, max(0, len(c) - 63)) for n, c in zip(tokens, captions, strict=True)
    ]


@pytest.mark.slow
def test_equal_texts_share_their_bytes(tmp_path: Path) -> None:
    once, often = (
        cache_of(tmp_path / name, captions, shard_clips=8)
        for name, captions in (("once", ["a" * 30]), ("often", ["a" * 30] * 8))
        if not (tmp_path / name).mkdir()
    )
    sizes = []
    for cache in (once, often):
        add(cache, umt5=text_field(length=64))
        table = pq.read_table(next(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*")))
        sizes.append(pc.max(pc.add(table["offset"], table["length"])).as_py())
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_only_texts_that_changed_are_encoded_again(cache: PlannedCache, counted: Path) -> None:
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    encoded(counted)
    changed = {"v0#0": "another", "v7#0": "one more"}
    relabel(cache, changed)
    with pytest.raises(KeyError, match="captions changed since"):
        latentcache.open_cache(cache.storage.url).sample("v0#0")["umt5"]
    add(cache, "--update", umt5=text_field())
    assert encoded(counted) == sorted(changed.values())
    assert texts_of(cache.storage.url)["v0#0"] == "another"
    after = read_files(Path(cache.storage.url))
    replaced = {name for name in before if after[name] != before[name]}
    assert replaced == {"index.parquet", "fields/umt5/index.parquet"}


@pytest.mark.slow
def test_what_a_cache_has_grown_by_is_encoded_and_nothing_else(
    cache: PlannedCache, counted: Path
) -> None:
    add(cache, umt5=text_field())
    encoded(counted)
    grow(cache, ["new one", "new two"])
    run_inline("resume", cache.storage.url)
    assert encoded(counted) == ["new one", "new two"]
    assert {"new one", "new two"} <= set(texts_of(cache.storage.url).values())


def test_clips_that_were_replaced_are_no_failures_of_a_field_that_is_added_later(
    tmp_path: Path, counted: Path
) -> None:
    cache = cache_of(tmp_path, CAPTIONS[:6])
    first = cache.planned_shards()[0]
    repair_cache(cache.storage, {first: [0, 2]})
    cache = replace(cache, manifest=read_manifest(cache.storage))
    fill_cache(cache, seed=1)
    printed = add(cache, "run.max_failed_fraction=0", umt5=text_field())
    assert "field    umt5: 6 clips ok, 0 failed" in printed
    assert "failed:" not in printed
    assert len(encoded(counted)) == 6
    assert run_inline("verify", cache.storage.url)[0] == 0


def test_a_text_that_fails_costs_its_clip(tmp_path: Path) -> None:
    captions = ["fine", "NAN", None, "CLIP", "also fine"]
    cache = cache_of(tmp_path, captions, shard_clips=5)
    printed = add(cache, status=3, umt5=text_field(), clip=text_field(calm=True, missing="empty"))
    assert "2 x non_finite" in printed
    table = pq.read_table(next(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*")))
    assert table["reason"].to_pylist() == [None, "non_finite", "no_caption", "non_finite", None]
    assert texts_of(cache.storage.url, "clip") == {f"v{n}#0": captions[n] for n in (0, 1, 3, 4)}


@pytest.mark.slow
def test_failed_texts_are_tried_again_without_those_that_lack(
    tmp_path: Path, counted: Path
) -> None:
    cache = cache_of(tmp_path, ["fine", "NAN", None, "CLIP"], shard_clips=2)
    add(cache, status=3, umt5=text_field())
    encoded(counted)
    status, _ = run_inline("resume", cache.storage.url, "--retry-failed", "--field", "umt5")
    assert (status, encoded(counted)) == (3, ["CLIP", "NAN"])


def test_texts_that_failed_beside_others_are_counted_and_tried_again(
    tmp_path: Path, counted: Path
) -> None:
    texts = [["a 0", "a 1"], ["CLIP b", "NAN b", "b 2"], ["CLIP"], ["d 0", "CLIP d"]]
    cache = cache_of(tmp_path, [None] * 4, texts=texts, shard_clips=2)
    printed = add(cache, status=3, many=text_field(column="texts"))
    assert "many: 3 clips ok, 1 failed" in printed
    assert "texts    3 failed of clips that have others" in printed
    assert re.search(r"^ +3 x non_finite: ", printed, re.MULTILINE)
    url = cache.storage.url
    _, shown = run_inline("status", url)
    assert "3 clips ok, 1 failed, 3 texts of ok clips failed" in shown
    encoded(counted)
    again = ("resume", url, "--retry-failed", "--field", "many")
    status, printed = run_inline(*again, "fields.many.calm=true")
    assert (status, encoded(counted)) == (0, sorted([*texts[1], *texts[2], *texts[3]]))
    assert "retry    3 clips" in printed
    assert "many: 4 clips ok, 0 failed" in printed
    assert "texts " not in printed
    _, printed = run_inline(*again)
    assert "retry    0 clips" in printed


@pytest.mark.slow
def test_a_retry_that_was_stopped_is_not_planned_twice(tmp_path: Path, counted: Path) -> None:
    cache = cache_of(tmp_path, ["fine", "NAN", "CLIP"], shard_clips=2)
    add(cache, status=3, umt5=text_field())
    encoded(counted)
    planned = reopen_field(cache, "umt5")
    assert planned.with_version("retry", planned.failed_rows())
    status, printed = run_inline("resume", cache.storage.url, "--retry-failed", "--field", "umt5")
    assert (status, encoded(counted)) == (3, ["CLIP", "NAN"])
    assert "retry    0 clips" in printed
    assert list(cache.storage.list("fields/umt5/versions")) == ["000002.parquet"]


@pytest.mark.slow
def test_what_a_killed_run_was_writing_keeps_no_field_from_being_made(
    cache: PlannedCache,
) -> None:
    folder = Path(cache.storage.url) / "fields/umt5"
    folder.mkdir(parents=True)
    (folder / f".field.json.{'0' * 32}.tmp").write_bytes(b"{")
    add(cache, umt5=text_field())
    assert set(texts_of(cache.storage.url).values()) <= {*CAPTIONS}


@pytest.mark.slow
def test_storage_that_is_gone_ends_all_fields(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    create = Storage.create

    def failing(storage: Storage, path: str, data: bytes) -> bool:
        if path.startswith("fields/one/samples/"):
            raise UnreachableError("cannot write it (tried 6 times). Check the network.")
        return create(storage, path, data)

    fields = {name: text_field() for name in ("one", "two", "three")}
    with mock.patch.object(Storage, "create", failing):
        printed = add(cache, status=1, **fields)
    assert printed.count("Error: ") == printed.count("Stopped.") == 1, printed
    assert field_names(cache.storage) == ["one"]
    add(cache, **fields)
    assert field_names(cache.storage) == ["one", "three", "two"]


@pytest.mark.slow
def test_a_clip_without_text_is_told_the_column_and_not_to_try_again(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["fine", None, " "], texts=[["a"], [], [None]])
    printed = add(cache, status=3, umt5=text_field(column=["caption", "texts"]))
    assert (
        printed.count("there is no text in caption or texts") == 4
    )  # as they fail, and in the end
    assert "again" not in printed
    assert "again" in add(cache_of(made(tmp_path), ["NAN", None]), status=3, umt5=text_field())


def made(folder: Path) -> Path:
    (folder / "another").mkdir()
    return folder / "another"


def test_a_shard_is_encoded_before_the_next_is_begun(tmp_path: Path, counted: Path) -> None:
    captions = [f"{n}" for n in range(12)]
    cache = cache_of(tmp_path, captions, shard_clips=4)
    add(cache, umt5=text_field(takes_s=0.002))
    _, *texts = counted.read_text().splitlines()
    shards = [shard.number for shard in cache.planned_shards()]
    tables = [pq.read_table(path) for path in sample_tables(cache)]
    shard_of = {t["key"][n].as_py(): t["shard"][n].as_py() for t in tables for n in range(len(t))}
    order = [shard_of[f"v{text}#0"] for text in texts]
    assert [number for number, _ in itertools.groupby(order)] == sorted(shards, key=order.index)


def sample_tables(cache: PlannedCache) -> list[Path]:
    return sorted(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*.parquet"))


@pytest.mark.slow
def test_a_field_that_is_dropped_while_it_is_encoded_is_said(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    create, url = Storage.create, cache.storage.url

    def dropping(storage: Storage, path: str, data: bytes) -> bool:
        if path.startswith("fields/umt5/samples/"):
            (Path(url) / "fields/umt5/field.json").unlink(missing_ok=True)
        return create(storage, path, data)

    with mock.patch.object(Storage, "create", dropping):
        printed = add(cache, status=1, umt5=text_field())
    assert "was dropped while this run encoded it" in printed
    assert run_inline("drop_field", url, "umt5", "--yes")[0] == 0
    add(cache, umt5=text_field())


@pytest.mark.slow
def test_settings_that_are_no_files_stay_whatever_lies_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(tmp_path)
    monkeypatch.chdir(here)
    fields = {"umt5": text_field(missing="empty"), "frame0": {"kind": "raw", "of": "first"}}
    for value in ("text", "caption", "bfloat16", "empty", "raw", "first", FAMILY):
        (here / value).mkdir()
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=fields["umt5"])
    assert run_inline("resume", cache.storage.url, "--field", "umt5", "run.runner=local")[0] == 0
    for name, field in parse_fields(fields).items():
        settings = plan_field(cache, name, field).field.settings
        assert parse_fields({name: settings})[name] == field


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "status", "message"),
    [
        ("describe", 2, "there is no such model"),
        ("code", 1, "cannot be described: KeyError: 'hidden_size'"),
        ("name", 2, "'a/b' is no name of an array"),
        ("padding", 2, "padded with 'zeroes'"),
        ("build", 1, "the weights are cut short"),
        ("tokens", 1, "so a mask would be wrong"),
        ("names", 1, "returned other, not states"),
    ],
)
def test_an_encoder_that_is_broken_leaves_other_fields_alone(
    tmp_path: Path, broken: str, status: int, message: str
) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    fields = {"bad": text_field(broken=broken), "umt5": text_field()}
    printed = add(cache, status=status, **fields)
    assert message in printed
    assert "everything else stays" in printed or "Stopped" in printed
    assert set(texts_of(cache.storage.url).values()) <= {*CAPTIONS}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            {"kind": "audio", "seconds": 1.0, "encoder": {"family": "encodec", "model": "/m"}},
            "ConfigError: fields.bad.encoder:\n  bandwidth: required, but not given",
        ),
        (
            {"kind": "visual", "of": "first", "encoder": {"family": "wan_clap", "model": "/m"}},
            "ConfigError: fields.bad.encoder.family: unknown tower 'wan_clap'",
        ),
        (
            {"kind": "text", "family": "wan", "model": "/m", "lenght": 3},
            "ConfigError: fields.bad:\n  lenght: unknown key. Did you mean 'length'?",
        ),
        (
            {"kind": "joint", "family": "wan", "model": "/m", "images": "first"},
            "ConfigError: fields.bad.family: unknown family 'wan'",
        ),
        (text_field(broken="describe"), "ConfigError: fields.bad: hashed_text: there is no such"),
        (
            {"kind": "visual", "of": "clip", "scale": 0.4142},
            "ConfigError: fields.bad: scale: clips of 64x96 cannot be encoded",
        ),
    ],
)
@pytest.mark.parametrize("args", [(), ("--dry-run",)])
def test_a_message_on_a_fields_settings_names_the_field(
    tmp_path: Path, field: dict[str, Any], message: str, args: tuple[str, ...]
) -> None:
    cache = cache_of(tmp_path, CAPTIONS[:2])
    assert message in add(cache, *args, status=2, bad=field)


def test_a_line_on_a_field_names_the_axes_that_follow_from_the_clips(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS[:2], clip=(5, 96, 96))
    fields = {
        "half": {"kind": "visual", "of": "clip", "scale": 0.5},
        "more": {"kind": "visual", "of": "clip", "scale": 0.667},
        "first": {"kind": "visual", "of": "first"},
        "whole": {"kind": "raw", "of": "clip"},
        "umt5": text_field(pooled=True),
    }
    printed = add(cache, "--dry-run", **fields)
    lines = re.findall(r"^field    (.*\])", printed, re.MULTILINE)
    assert lines == [
        "first: [16, 1, h, w]",
        "half: [16, t, h/2, w/2]",
        "more: [16, t, 2h/3, 2w/3]",
        "umt5: [32, 8]",
        "umt5.pooled: [8]",
        "whole: [T, H, W, 3]",
    ]


@pytest.mark.slow
def test_a_field_whose_settings_turn_out_wrong_can_be_dropped(tmp_path: Path) -> None:
    """Only its model knew: to go on with the same settings would fail again."""
    cache = cache_of(tmp_path, CAPTIONS[:2])
    printed = add(cache, status=2, umt5=text_field(broken="settings"))
    assert "ConfigError: length: the model has no such positions" in printed
    assert f"drop-field {cache.storage.url} umt5 --yes" in printed


def test_a_field_of_another_recipe_is_refused(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    printed = add(cache, status=2, umt5=text_field(length=16))
    assert "encoder.length: 32 in the cache, 16 now" in printed
    assert read_files(Path(cache.storage.url)) == before


@pytest.mark.slow
def test_a_dropped_field_leaves_nothing_and_can_be_made_again(cache: PlannedCache) -> None:
    before = read_files(Path(cache.storage.url))
    assert field_names(cache.storage) == []
    add(cache, umt5=text_field())
    assert field_names(cache.storage) == ["umt5"]
    status, printed = run_inline("drop_field", cache.storage.url, "umt5")
    assert (status, "can go" in printed) == (0, True)
    assert run_inline("drop_field", cache.storage.url, "umt5", "--yes")[0] == 0
    assert read_files(Path(cache.storage.url)) == before
    add(cache, umt5=text_field(length=16))
    assert texts_of(cache.storage.url, length=16)


@pytest.mark.slow
def test_a_model_that_expects_another_field_is_told_with_both_numbers(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    latentcache.open_cache(
        cache.storage.url, expect={"fields": {"umt5": {"length": 32, "width": 8}}}
    )
    with pytest.raises(latentcache.CacheError, match="length: 512 expected, 32 in the cache"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt5": {"length": 512}}})
    with pytest.raises(latentcache.ConfigError, match=r"no 'lenght'\. Did you mean 'length'"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt5": {"lenght": 512}}})
    with pytest.raises(latentcache.ConfigError, match=r"no field 'umt'\. Did you mean 'umt5'"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt": {}}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"umt5": {"kind": "texts"}}, "Did you mean 'text'"),
        ({"latents": {"kind": "text"}}, "have that key already|such a key already"),
        ({"Umt5": {"kind": "text"}}, "no name of a field"),
        ({"umt5": {"kind": "text"}}, "family: required"),
        ({"umt5": text_field(column="captoin")}, "no such column. Did you mean 'caption'"),
        ({"umt5": text_field(nulls={"null": "x"})}, "use other names"),
        ({"umt5": {"kind": "text", "family": "no.such.module"}}, "there is no module"),
        ({"umt5": {"kind": "text", "family": "..module"}}, "neither a family nor a module's name"),
        (
            {"umt5": {"kind": "visual", "of": "first", "encoder": {"family": ["x"]}}},
            "unknown tower",
        ),
        ({"fields": {"umt5": text_field()}, "clip": text_field()}, "'clip' beside `fields`"),
    ],
)
def test_a_wrong_field_is_said_in_one_message(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    path = write_fields(tmp_path, **fields)
    status, printed = run_inline("add_field", cache.storage.url, path, "run.runner=local")
    assert status == 2
    assert re.search(message, printed), printed
    assert not [name for name in read_files(Path(cache.storage.url)) if name.startswith(FIELDS)]


@pytest.mark.slow
def test_texts_that_changed_are_named_without_update(tmp_path: Path, counted: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    cache = relabel(cache, {"v0#0": "another", "v7#0": "one more"})
    encoded(counted)
    printed = add(cache, umt5=text_field())
    assert "2 clips have other texts than the field umt5 encodes" in printed
    assert encoded(counted) == []


def test_a_field_is_not_named_as_a_column(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    assert "has a column of that name" in add(cache, status=2, texts=text_field())


def test_an_update_that_another_run_is_always_first_with_ends(
    cache: PlannedCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_field(cache, "own", parse_fields({"own": text_field()})["own"])
    row = {cache.planned_shards()[0]: frozenset({0})}
    monkeypatch.setattr(type(planned), "changed_rows", lambda _: row)
    monkeypatch.setattr(fields, "_take_version", lambda planned, *_: planned)
    with pytest.raises(CacheError, match=f"tried {ROUNDS} times, and each time another run"):
        fields._with_changed(planned)
    assert capsys.readouterr().out.count("changed  1 clips") == 1
