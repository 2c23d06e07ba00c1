"""What a copied cache says of sources: as a cache knows them that is right about them, at best as whole."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latentcache.copying.owners import Owners, Union
from latentcache.copying.selection import Selection
from latentcache.copying.sources import NewSources
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.known_sources import KnownSources
from latentcache.planning.step import Step

NAMES = [f"v{n}" for n in range(12)]


class Cache:
    """What is known of a cache's sources. rows: of each, its content and what it is."""

    def __init__(self, number: int, rows: dict[str, tuple[str | None, str]]) -> None:
        self.rows = rows
        facts = {"url": f"/{number}", "kind": "video", "stamp": None}
        table = [
            {"source": name, "identity": identity, "what": what, **facts}
            for name, (identity, what) in rows.items()
        ]
        self.sources = KnownSources(pa.Table.from_pylist(table, schema=PLANNED_SOURCE_SCHEMA))

    def rejected_rows(self) -> pa.Table:
        return self.sources.table.filter(pa.compute.equal(self.sources.table["what"], "rejected"))


def make_cache(number: int, rng: random.Random) -> Cache:
    rows: dict[str, tuple[str | None, str]] = {}
    for name in rng.sample(NAMES, rng.randint(1, len(NAMES))):
        what = rng.choice(["planned", "planned", "partial", "rejected"])
        rows[name] = (rng.choice(["a", "a", "b", None]), what)
    return Cache(number, rows)


def right_ones(caches: list[Cache], name: str) -> list[int]:
    """The caches that are right about a source, if the first is preferred."""
    there = [n for n, cache in enumerate(caches) if name in cache.rows]
    takes = [n for n in there if caches[n].rows[name][1] != "rejected"]
    if not takes:
        return there[:1]
    content = caches[takes[0]].rows[name][0]
    return [n for n in takes if n == takes[0] or content == caches[n].rows[name][0] is not None]


def expected(
    caches: list[Cache], given: set[str], lacking: set[str], selection: Selection
) -> dict[str, tuple[str, str]]:
    found = {}
    for name in NAMES:
        right = right_ones(caches, name)
        if not right or not (selection.is_all or name in given):
            continue
        whole = [n for n in right if caches[n].rows[name][1] != "partial"]
        teller = (whole or right)[0]
        what = caches[teller].rows[name][1]
        if name in lacking:
            what = "partial" if name in given else ""
        elif what == "partial" and selection.keys is not None:
            what = "planned"
        if what:
            found[name] = (f"/{teller}", what)
    return found


@pytest.mark.parametrize("seed", range(150))
def test_each_source_is_told_by_a_cache_that_is_right_about_it(seed: int) -> None:
    rng = random.Random(seed)
    caches = [make_cache(n, rng) for n in range(rng.randint(1, 3))]
    there = {name for cache in caches for name in cache.rows}
    given = {name for name in sorted(there) if rng.random() < 0.7}
    lacking = {name for name in sorted(there) if rng.random() < 0.2}
    selection = rng.choice([Selection(), Selection(where="x"), Selection(keys=frozenset({"k"}))])
    union = Union([cache.sources for cache in caches])
    known: Any = caches
    owners = Owners(union, "first")
    sources = NewSources(known, owners, selection, union.mask(given), union.mask(lacking))
    step = Step(kind="merge")
    rejected = sources.add_to(step)
    said = {
        row["source"]: (row["url"], row["what"])
        for table in step.sources
        for row in table.to_pylist()
    }
    assert said == expected(caches, given, lacking, selection)
    names = {name for table in rejected for name in table["source"].to_pylist()}
    assert names == {name for name, (_, what) in said.items() if what == "rejected"}
    is_partial = {name for name, (_, what) in said.items() if what == "partial"}
    assert sources.partial == is_partial - lacking


@pytest.mark.parametrize(("num_caches", "most_bytes"), [(1, 40), (2, 150)])
def test_a_source_takes_less_than_an_object_of_pythons(num_caches: int, most_bytes: int) -> None:
    """A copy of one cache looks at no name."""
    rows = {f"folder/clip-{n:08d}.mp4": ("content", "planned") for n in range(20_000)}
    caches: Any = [Cache(n, rows) for n in range(num_caches)]
    tracemalloc.start()
    try:
        union = Union([cache.sources for cache in caches])
        nothing = np.zeros(union.size, bool)
        sources = NewSources(caches, Owners(union, None), Selection(), nothing, nothing)
        sources.add_to(Step(kind="merge"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / len(rows) < most_bytes
