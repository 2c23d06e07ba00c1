"""Tables of sources at absolute paths that move, with the files of fields, to another folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tools.caches import read_files, run_inline, without_logs
from tests.tools.fields import write_fields
from tests.tools.moving import ARRAY, Moving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

ASKS = "nothing says where these start"


class MovedTable(Moving):
    """A cache of the table in `old`, whose sources are in a folder of their own, or beside it."""

    sources = "media"

    def move(self, place: str, first: int = 11) -> None:
        """Write the table and other files in a folder, while what was there before stays."""
        self.write(place, a=("a1", first), b=("b1", first + 1))
        self.name_sources(place, "urls", of=dict.fromkeys("abc", self.sources))

    def num_generations(self) -> int:
        return len(list((self.cache / "generations").iterdir()))

    def add_field(self, name: str = "f") -> tuple[int, str]:
        fields = write_fields(self.folder, **{name: self.field})
        return run_inline("add_field", self.cache, fields, "run.runner=local")


@pytest.fixture(name="table", params=["media", "old"])
def table_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> MovedTable:
    table = MovedTable(tmp_path, ARRAY, "npy")
    table.sources = request.param
    table.write("media", a=("-", 0), b=("-", 0), c=("-", 0))
    table.move("old", 1)
    return table


def test_precompute_of_a_moved_table_asks_where_files_of_a_new_field_are(table: MovedTable) -> None:
    table.precompute("old", field=False)
    table.move("new")
    assert ASKS in table.precompute("new", status=2)
    assert not (table.cache / "fields").exists()
    assert table.num_generations() == 1
    table.field = {**ARRAY, "folder": str(table.folder / "new")}
    table.precompute("new")
    assert table.values() == {"a": 11, "b": 12}


def test_what_follows_a_precompute_of_a_moved_table_asks_too(table: MovedTable) -> None:
    table.precompute("old", field=False)
    table.move("new")
    assert f"corpus   in {table.folder}/new now" in table.precompute("new", field=False)
    status, printed = table.add_field()
    assert (status, ASKS in printed) == (2, True), printed
    assert not (table.cache / "fields").exists()


def test_a_run_that_goes_on_after_a_table_has_moved_asks(table: MovedTable) -> None:
    table.precompute("old")
    table.forget_values()
    table.move("new")
    table.precompute("new", field=False)
    status, printed = table.resume()
    assert (status, ASKS in printed) == (2, True), printed
    status, printed = table.resume(f"fields.f.folder={table.folder}/new")
    assert status == 0, printed
    assert table.values() == {"a": 11, "b": 12}


def test_a_new_clip_beside_those_of_a_moved_table_has_its_file_and_they_are_asked_for(
    table: MovedTable,
) -> None:
    table.precompute("old")
    table.write("new", a=("a1", 11), b=("b1", 12), c=("c1", 13))
    shutil.copy(table.folder / "media/c.png", table.folder / "old/c.png")
    table.name_sources("new", "urls", of=dict.fromkeys("abc", table.sources))
    table.precompute("new")
    assert table.values() == {"a": 1, "b": 2, "c": 13}
    status, printed = table.add_field("g")
    assert (status, ASKS in printed) == (2, True), printed


def test_a_table_that_moves_on_and_back_asks_and_encodes_nothing_again(table: MovedTable) -> None:
    table.precompute("old")
    table.move("new")
    kept = ("samples", "latents", "fields")
    before = {name: read_files(table.cache / name) for name in kept}
    for place in ("new", "new", "old", "old", "new"):
        table.precompute(place)
        assert table.num_generations() == 2
        status, printed = table.add_field("g")
        assert (status, ASKS in printed) == (2, True), printed
    assert {name: read_files(table.cache / name) for name in kept} == before
    for job in (("verify",), ("clean", "--yes"), ("status",), ("verify",)):
        status, printed = run_inline(job[0], table.cache, *job[1:])
        assert status == 0, printed
    assert table.values() == {"a": 1, "b": 2}


def test_a_path_that_changed_in_a_moved_table_starts_there_until_it_moves_again(
    table: MovedTable,
) -> None:
    table.precompute("old")
    table.write("new", a=("a1", 11), b=("b2", 12))
    table.name_sources("new", "urls", of=dict.fromkeys("ab", table.sources))
    table.precompute("new")
    assert table.values() == {"a": 1, "b": 12}
    table.write("old", a=("a1", 1), b=("b2", 22))
    table.name_sources("old", "urls", of=dict.fromkeys("ab", table.sources))
    table.precompute("old", field=False)
    table.forget_values()
    shutil.rmtree(table.cache / "fields/f/000002")
    status, printed = table.resume()
    assert (status, ASKS in printed) == (2, True), printed


def test_tables_in_turn_of_which_one_has_changed_a_path_note_it_once(table: MovedTable) -> None:
    table.precompute("old")
    table.move("new")
    table.precompute("new", field=False)
    for place in ("new", "old"):
        table.write(place, a=("a2", 21), b=("b1", 22))
        table.name_sources(place, "urls", of=dict.fromkeys("ab", table.sources))
    table.precompute("new", field=False)
    numbers = []
    for place in ("old", "new", "old", "new"):
        table.precompute(place, field=False)
        numbers.append(table.num_generations())
    assert numbers == [4, 4, 4, 4]
    status, printed = table.add_field("g")
    assert (status, ASKS in printed) == (2, True), printed


def test_a_dry_run_notes_nothing(table: MovedTable) -> None:
    table.precompute("old", field=False)
    table.move("new")
    before = read_files(table.cache)
    table.precompute("new", "--dry-run", field=False)
    assert read_files(table.cache) == before


def test_corpora_of_their_own_sources_leave_no_trace_when_nothing_has_changed(
    tmp_path: Path,
) -> None:
    both = Moving(tmp_path, ARRAY, "npy")
    both.write("one", a=("n1", 1), b=("n2", 2))
    both.write("two", c=("n1", 101), d=("n2", 102))
    for place in ("one", "two"):
        both.name_sources(place, "urls")
        both.precompute(place)
    before = without_logs(read_files(both.cache))
    for place in ("one", "two", "one"):
        both.precompute(place)
    assert without_logs(read_files(both.cache)) == before
