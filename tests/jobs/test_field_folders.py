"""Fields of files whose paths are relative, while the corpus moves from one folder to another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, text_field, write_fields
from tests.tools.moving import ARRAY, PIXELS, Given, Moving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

KINDS = [pytest.param((ARRAY, "npy"), id="array"), pytest.param((PIXELS, "png"), id="raw")]


@pytest.fixture(name="moving", params=KINDS)
def moving_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> Moving:
    """A cache made in the folder `old`, where there are other files now of the names that come later."""
    field, suffix = request.param
    moving = Moving(tmp_path, field, suffix)
    moving.write("old", a=("a1", 1), b=("b1", 2))
    moving.precompute("old")
    moving.write("old", b=("b2", 100), c=("c1", 101))
    return moving


@pytest.fixture(name="two")
def two_fixture(tmp_path: Path) -> Moving:
    """A cache of a corpus in the folder `one`; another one's files in `two` have the same names."""
    moving = Moving(tmp_path, ARRAY, "npy")
    moving.write("one", a=("n1", 1), b=("n2", 2))
    moving.write("two", c=("n1", 101), d=("n2", 102))
    return moving


def test_files_are_those_beside_the_table_that_the_corpus_has_now(moving: Moving) -> None:
    moving.write("new", a=("a1", 1), b=("b2", 12), c=("c1", 13))
    moving.precompute("new")
    assert moving.values() == {"a": 1, "b": 12, "c": 13}
    assert run_inline("verify", moving.cache)[0] == 0


def test_a_run_that_goes_on_reads_where_the_corpus_was_last(moving: Moving) -> None:
    moving.write("new", a=("a1", 1), b=("b1", 2), c=("c1", 13))
    (moving.folder / "new" / f"c1.{moving.suffix}").unlink()
    moving.precompute("new", status=3)
    moving.write("new", c=("c1", 13))
    status, printed = moving.resume("--retry-failed")
    assert status == 0, printed
    assert moving.values()["c"] == 13


def test_a_run_knows_where_the_corpus_is_from_a_precompute_without_the_field(
    moving: Moving,
) -> None:
    moving.write("new", a=("a1", 1), b=("b2", 12), c=("c1", 13))
    moving.precompute("new", field=False)
    status, printed = moving.resume()
    assert status == 0, printed
    assert moving.values() == {"a": 1, "b": 12, "c": 13}


def test_a_new_field_of_a_corpus_that_has_moved_is_of_the_files_there(moving: Moving) -> None:
    moving.write("new", a=("a1", 11), b=("b1", 12))
    moving.precompute("new", field=False)
    fields = write_fields(moving.folder, g=moving.field)
    found, printed = run_inline("add_field", moving.cache, fields, "run.runner=local")
    assert found == 0, printed
    assert moving.values("g") == {"a": 11, "b": 12}


@pytest.mark.parametrize("given", ["names", "keys", "urls"])
def test_a_second_corpus_leaves_the_files_of_the_first_one_where_they_are(
    two: Moving, given: Given
) -> None:
    for place in ("one", "two"):
        two.name_sources(place, given)
    two.precompute("one")
    two.forget_values()
    two.precompute("two")
    assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_of_sources_elsewhere_nothing_says_whether_their_table_has_moved(two: Moving) -> None:
    two.write("media", a=("-", 0), b=("-", 0), c=("-", 0), d=("-", 0))
    for place in ("one", "two"):
        two.name_sources(place, "urls", of=dict.fromkeys("abcd", "media"))
    two.precompute("one")
    two.forget_values()
    printed = two.precompute("two", status=2)
    assert "nothing says where these start" in printed
    assert not (two.cache / "fields/f/samples").exists()


def test_failed_values_are_tried_again_at_the_corpus_of_their_clips(two: Moving) -> None:
    (two.folder / "one/n2.npy").unlink()
    two.precompute("one", status=3)
    two.write("one", b=("n2", 2))
    two.precompute("two", status=3)
    status, printed = two.resume("--retry-failed")
    assert status == 0, printed
    assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_clips_in_shards_of_both_corpora_have_the_files_of_their_own(two: Moving) -> None:
    two.precompute("one", field=False)
    two.precompute("two", field=False)
    status, printed = run_inline("compact", two.cache)
    assert (status, "1 shard" in printed) == (0, True), printed
    fields = write_fields(two.folder, f=two.field)
    status, printed = run_inline("add_field", two.cache, fields, "run.runner=local")
    assert status == 0, printed
    assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_a_field_that_is_added_later_reads_both_corpora(two: Moving) -> None:
    two.precompute("one", field=False)
    two.precompute("two", field=False)
    fields = write_fields(two.folder, g=two.field)
    found, printed = run_inline("add_field", two.cache, fields, "run.runner=local")
    assert found == 0, printed
    assert two.values("g") == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_a_path_that_another_corpus_gives_a_known_clip_starts_there(two: Moving) -> None:
    for place in ("one", "two"):
        two.write(place, a=("n3", 3 if place == "one" else 103))
        two.name_sources(place, "urls", of={"a": "one"})
    two.precompute("one")
    two.write("one", a=("n4", 4))
    two.write("two", a=("n4", 104))
    two.name_sources("two", "urls", of={"a": "one"})
    two.precompute("two")
    assert two.values()["a"] == 104


def test_a_copy_of_one_corpus_knows_where_it_is(two: Moving) -> None:
    two.precompute("one")
    two.forget_values()
    two.copy()
    status, printed = two.resume()
    assert status == 0, printed
    assert two.values() == {"a": 1, "b": 2}


def test_a_copy_of_several_corpora_asks_where_files_are(two: Moving) -> None:
    two.precompute("one")
    two.precompute("two", field=False)
    two.copy()
    status, printed = two.resume()
    assert (status, "nothing says where these start" in printed) == (2, True), printed
    assert two.values() == {"a": 1, "b": 2}
    status, printed = two.resume(f"fields.f.folder={two.folder}/two")
    assert status == 0, printed
    assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_absolute_paths_answer_where_files_of_several_corpora_are(two: Moving) -> None:
    two.precompute("one")
    two.precompute("two", field=False)
    two.copy()
    table = two.folder / "two/t.csv"
    table.write_text(table.read_text().replace(",n", f",{two.folder}/two/n"))
    two.precompute("two")
    assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_a_merge_of_several_corpora_asks_where_files_are(two: Moving) -> None:
    two.precompute("one")
    two.forget_values()
    first, two.cache = two.cache, two.folder / "second"
    two.precompute("two")
    status, printed = run_inline("merge", first, two.cache, "-o", two.folder / "merged")
    assert status == 0, printed
    two.cache = two.folder / "merged"
    status, printed = two.resume()
    assert (status, "nothing says where these start" in printed) == (2, True), printed
    assert two.values() == {"c": 101, "d": 102}


@pytest.mark.parametrize("copied", [False, True])
def test_a_folder_holds_for_what_had_come_when_it_was_told(two: Moving, copied: bool) -> None:
    field = two.field
    two.field = {**field, "folder": str(two.folder / "one")}
    two.precompute("one")
    two.forget_values()
    two.precompute("two", field=False)
    if copied:
        two.copy()
    status, printed = two.resume()
    assert (status, "nothing says where these start" in printed) == (2, True), printed
    assert not (two.cache / "fields/f/samples").exists()
    if not copied:
        two.field = field
        printed = two.precompute("two")
        assert "relative paths of f start at the corpus that each clip came from now" in printed
        assert two.values() == {"a": 1, "b": 2, "c": 101, "d": 102}


def test_a_folder_is_told_again_for_what_has_come_since(two: Moving) -> None:
    two.field = {**two.field, "folder": str(two.folder / "one")}
    two.precompute("one")
    printed = two.precompute("two")
    assert f"relative paths of f start at {two.folder}/one now" in printed
    assert two.values() == {"a": 1, "b": 2, "c": 1, "d": 2}
    assert two.resume()[0] == 0


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_field_of_paths_under_the_name_of_one_of_texts_is_refused(
    tmp_path: Path, options: list[str]
) -> None:
    cache = cache_of(tmp_path, ["one", "two"])
    add(cache, f=text_field())
    fields = write_fields(tmp_path, f=ARRAY)
    job = ["add_field", cache.storage.url, fields, *options, "run.runner=local"]
    status, printed = run_inline(*job)
    assert status == 2, printed
    assert "column 'file': the clips have no such column" in printed


def test_a_folder_that_is_gone_is_named_with_what_helps(moving: Moving) -> None:
    moving.write("new", a=("a1", 1), b=("b1", 2), c=("c1", 13))
    moving.write("moved", c=("c1", 13))
    shutil.move(moving.folder / "old", moving.folder / "elsewhere")
    moving.field = {**moving.field, "folder": str(moving.folder / "old")}
    printed = moving.precompute("new", status=1)
    command = f"latentcache resume {moving.cache} fields.f.folder=PLACE"
    assert f"start at {moving.folder}/old. If its files are elsewhere now:  {command}" in printed
    status, printed = moving.resume(f"fields.f.folder={moving.folder}/moved")
    assert status == 0, printed
    assert moving.values() == {"a": 1, "b": 2, "c": 13}
