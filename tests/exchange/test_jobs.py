"""The jobs themselves: stopped and run again, wrong places, options that a layout has no use for."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.planning.fields.planned import reopen_field
from tests.tools.exchange import COGVIDEOX, export, make_cache, run, spec_of, take_in, unmark
from tests.tools.fields import add, cache_of, relabel, text_field


def spoil(path: Path, name: str) -> None:
    """Overwrite a file in a tar file, which stays whole."""
    data = bytearray(path.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmember(name)
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    path.write_bytes(data)


def keep_times(path: Path, facts: os.stat_result) -> None:
    """Give a file the time of change that it had."""
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.slow
def test_an_import_that_was_stopped_goes_on_and_resume_encodes_nothing(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, clips=2)
    out, target = tmp_path / "out", tmp_path / "again"
    export(cache, out, "webdataset")
    unmark(out)
    path = out / "shard-000000.tar"
    whole, facts = path.read_bytes(), path.stat()
    spoil(path, "000000005.latents.pth")
    keep_times(path, facts)
    command = ("import", "webdataset", out, target, "--like", cache.storage.url)
    assert f"{path} has a file 000000005.latents.pth that is no tensor" in run(*command, status=2)
    assert "latentcache import" in run("resume", target, status=2)
    go_on = f"latentcache import webdataset {out} {target} --like"
    printed = run("status", target)
    assert go_on in printed
    assert "latentcache resume" not in printed
    path.write_bytes(whole)
    keep_times(path, facts)
    run(*command)
    again = latentcache.open_cache(str(target))
    assert sorted(again.keys()) == sorted(cache.keys())
    for key in again.keys():  # noqa: SIM118 - a cache is no dict
        assert torch.equal(again.stored(key), cache.stored(key))
    assert "state    finished\n" in run("status", target)
    run("resume", target)
    run("verify", target)


def test_an_imported_cache_is_never_mixed_with_an_encoded_one(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    export(wan, tmp_path / "out", "hf")
    again = take_in("hf", tmp_path / "out", tmp_path / "again", wan)
    printed = run("merge", wan.storage.url, again.storage.url, "-o", tmp_path / "m", status=2)
    assert "import: absent in" in printed
    args = ("import", "hf", tmp_path / "out", tmp_path / "again", "--like", wan.storage.url)
    assert "this one differs" in run(*args, "--dtype", "float32", status=2)


def test_wrong_places_are_a_sentence_each(wan: latentcache.Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    like = ("--like", wan.storage.url)
    for place, said in [("file", "is a file"), ("full", "is not empty")]:
        assert said in export(wan, tmp_path / place, "musubi", status=2)
    for place in ("nowhere", "file"):
        for layout in ("fastvideo", "mds", "musubi"):
            printed = run("import", layout, tmp_path / place, tmp_path / "n", *like, status=2)
            assert "there is no folder here with files" in printed
    printed = run("import", "musubi", tmp_path / "full", tmp_path / "n", *like, status=2)
    assert "no clip of the layout musubi" in printed


@pytest.mark.parametrize(
    "word", ["stray", "cach.storage_options.profile=x", "cache.storage_options", "run.workers=2"]
)
def test_a_word_without_a_use_is_refused_before_anything_is_written(
    wan: latentcache.Cache, tmp_path: Path, word: str
) -> None:
    says = f"{word.partition('=')[0]}: this job copies what is stored"
    assert says in export(wan, tmp_path / "out", "hf", word, status=2)
    assert not (tmp_path / "out").exists()
    export(wan, tmp_path / "out", "hf")
    new = tmp_path / "new"
    like = ("--like", wan.storage.url)
    assert says in run("import", "hf", tmp_path / "out", new, *like, word, status=2)
    assert not new.exists()


@pytest.mark.parametrize("stem", ["l" * 230, "動" * 76])
def test_names_that_no_disk_holds_are_refused_before_anything_is_written(
    stem: str, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, names=("a.mp4", f"{stem}.mp4", "b.mp4"))
    printed = export(cache, tmp_path / "out", "musubi", status=2)
    assert "1 files would have names of more than 255 bytes" in printed
    assert f"{stem}_00000-005" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "name", "said"),
    [
        ("simpletuner", "d" * 300 + "/n.mp4", "1 files would have names of more than 255 bytes"),
        ("simpletuner", ".dir/x.mp4", "1 files would be hidden"),
        ("musubi", ".hidden.mp4", "1 files would be hidden"),
    ],
)
def test_names_that_would_be_lost_on_the_way_are_refused_first(
    layout: str, name: str, said: str, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, names=("a.mp4", name))
    assert said in export(cache, tmp_path / "out", layout, status=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["l" * 215, "動" * 70])
def test_the_longest_names_are_written(stem: str, tmp_path: Path) -> None:
    """Temporary names, under which files are written, are longer than their own."""
    cache = make_cache(tmp_path, names=("a.mp4", f"{stem}.mp4", "b.mp4"))
    export(cache, tmp_path / "out", "musubi")
    assert (tmp_path / "out" / f"{stem}_00000-005_0048x0032_wan.safetensors").is_file()


def test_a_shard_of_mds_that_is_not_whole_is_named(wan: latentcache.Cache, tmp_path: Path) -> None:
    out, like = tmp_path / "out", ("--like", wan.storage.url)
    export(wan, out, "mds", "--text", "umt5")
    unmark(out)
    path = out / "shard.00000.mds"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # of a field, which an import does not read
    printed = run("import", "mds", out, tmp_path / "n", *like, status=2)
    assert f"{path} is no whole shard of MDS: it has {len(whole) - 1:,} bytes" in printed
    path.unlink()
    assert f"{path} is not there" in run("import", "mds", out, tmp_path / "n", *like, status=2)
    (out / "index.json").unlink()
    assert "there is no index.json" in run("import", "mds", out, tmp_path / "n", *like, status=2)


@pytest.mark.parametrize(
    ("layout", "option"),
    [
        ("musubi", ("--field", "umt5")),
        ("musubi", ("--model", "x")),
        ("memmap", ("--text", "umt5")),
        ("memmap", ("--dtype", "float32")),
        ("hf", ("--dtype", "float32")),
        ("simpletuner", ("--text", "umt5")),
        ("rcm", ("--dtype", "float32")),
    ],
)
def test_options_without_a_use_are_refused(
    wan: latentcache.Cache, tmp_path: Path, layout: str, option: tuple[str, str]
) -> None:
    assert f"{option[0]}" in export(wan, tmp_path / "out", layout, *option, status=2)
    assert not (tmp_path / "out").exists()


def test_a_field_that_has_changed_is_no_part_of_an_export_that_was_begun(tmp_path: Path) -> None:
    """Files of the old texts would be mixed with those of the new ones."""
    cache = make_cache(tmp_path, names=("a.mp4",), captions=("one",))
    add(cache, umt5=text_field(length=24, nulls={"negative": "bad"}))
    out = tmp_path / "out"
    export(cache, out, "musubi", "--text", "umt5")
    assert "1, 0 there" not in export(cache, out, "musubi", "--text", "umt5")
    run("drop_field", cache.storage.url, "umt5", "--yes")
    add(cache, umt5=text_field(length=16))
    cache = latentcache.open_cache(cache.storage.url)
    assert "another fields" in export(cache, out, "musubi", "--text", "umt5", status=2)


@pytest.mark.slow
@pytest.mark.usefixtures("fastvideo_takes_dct")
def test_states_of_other_captions_than_those_of_now_are_refused(tmp_path: Path) -> None:
    planned = cache_of(tmp_path, ["a cat", "a dog", "a hen"])
    add(planned, umt5=text_field(length=24))
    recaptioned = relabel(planned, {"v1#0": "a wolf"})
    cache = latentcache.open_cache(planned.storage.url)
    for is_planned in (False, True):
        if is_planned:  # by a run that was stopped there
            field = reopen_field(recaptioned, "umt5")
            assert field.with_version("update", field.changed_rows())
        for layout, option in (("fastvideo", "--text"), ("webdataset", "--field")):
            printed = export(cache, tmp_path / layout, layout, option, "umt5", status=2)
            assert "1 clip with other texts or files now" in printed
            assert "'v1#0'" in printed
            assert not (tmp_path / layout).exists()
        cache = latentcache.open_cache(planned.storage.url)
    run("resume", planned.storage.url, "run.runner=local", "--field", "umt5")
    cache = latentcache.open_cache(planned.storage.url)
    export(cache, tmp_path / "fastvideo", "fastvideo", "--text", "umt5")


@pytest.mark.parametrize(("layout", "name"), [("hf", "shape"), ("hf", "dtype"), ("mds", "facts")])
def test_a_field_cannot_take_the_place_of_a_column(layout: str, name: str, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, names=("a.mp4",))
    add(cache, **{name: text_field(length=8)})
    cache = latentcache.open_cache(cache.storage.url)
    printed = export(cache, tmp_path / "out", layout, "--field", name, status=2)
    assert f"would both be the column {name}" in printed
    export(cache, tmp_path / "out", "webdataset", "--field", name)


def test_texts_that_are_too_long_are_named_first(tmp_path: Path) -> None:
    captions = ["short", "long " * 60, "short"]
    cache = make_cache(tmp_path, spec_of(COGVIDEOX), captions=captions)
    add(cache, t5=text_field(length=256))
    printed = export(cache, tmp_path / "out", "finetrainers", "--text", "t5", status=2)
    assert "1 text of more than the 226 tokens" in printed
    assert "'b/two_three.mp4#0'" in printed
    assert not (tmp_path / "out").exists()
