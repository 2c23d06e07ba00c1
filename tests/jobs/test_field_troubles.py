"""Fields whose texts or encoders fail, whose settings are wrong, or that go while they are made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from jobs import fields
from latentcache.config.fields import parse_fields
from latentcache.errors import CacheError, UnreachableError
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import FIELDS
from latentcache.format.rounds import ROUNDS
from latentcache.planning.fields.planned import plan_field, reopen_field
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files, run_inline
from tests.tools.fields import (
    CAPTIONS,
    FAMILY,
    add,
    cache_of,
    encoded,
    text_field,
    texts_of,
    write_fields,
)

pytestmark = pytest.mark.usefixtures("kept_pools")


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


@pytest.mark.slow
def test_a_field_whose_settings_turn_out_wrong_can_be_dropped(tmp_path: Path) -> None:
    """Only its model knew: to go on with the same settings would fail again."""
    cache = cache_of(tmp_path, CAPTIONS[:2])
    printed = add(cache, status=2, umt5=text_field(broken="settings"))
    assert "ConfigError: length: the model has no such positions" in printed
    assert f"drop-field {cache.storage.url} umt5 --yes" in printed


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
