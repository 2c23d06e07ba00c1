"""Which of several caches are right about a source, over small tables of what each cache knows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.copying.owners import Owners, Prefer, Union
from latentcache.errors import CacheError
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.known_sources import KnownSources

#: What a cache knows of the source `v`: its content, that it is rejected, that it has clips, or nothing.
REJECTED, UNKNOWN, ABSENT = "rejected", "unknown", "absent"
CACHES = st.lists(
    st.sampled_from(["one", "other", REJECTED, UNKNOWN, ABSENT]), min_size=2, max_size=4
)


def known(number: int, what: str) -> KnownSources:
    """What a cache knows: of v, and of a source that no other cache has."""
    identity = None if what in (REJECTED, UNKNOWN) else what
    rows = [{"source": f"own{number}", "identity": identity, "what": "planned"}]
    if what != ABSENT:
        is_rejected = what == REJECTED
        rows += [
            {"source": "v", "identity": identity, "what": "rejected" if is_rejected else "planned"}
        ]
    facts = {"url": "/v", "kind": "video", "stamp": None}
    return KnownSources(
        pa.Table.from_pylist([row | facts for row in rows], schema=PLANNED_SOURCE_SCHEMA)
    )


def owners(caches: Sequence[str], prefer: Prefer | None) -> list[int]:
    """Return the caches that have the source and are right about it."""
    found = Owners(Union([known(*cache) for cache in enumerate(caches)]), prefer)
    there = [number for number, what in enumerate(caches) if what != ABSENT]
    for number in range(len(caches)):
        own = pa.chunked_array([[f"own{number}"]])
        assert (found.shared(own).all(), found.is_right(number, own).all()) == (False, True)
    name = pa.chunked_array([["v"]])
    if there:
        assert found.shared(name).all() == (len(there) > 1)
    return [number for number in there if found.is_right(number, name).all()]


@given(CACHES, st.sampled_from(["first", "last"]))
def test_all_caches_of_the_content_that_counts_are_right(caches: list[str], prefer: Prefer) -> None:
    contents = [what for what in caches if what not in (REJECTED, ABSENT)]
    if contents:
        right = contents[0 if prefer == "first" else -1]
        same = [n for n, what in enumerate(caches) if what == right]
        if right == UNKNOWN:  # of one cache is no other one's
            same = [same[0 if prefer == "first" else -1]]
        assert owners(caches, prefer) == same
    else:
        there = [number for number, what in enumerate(caches) if what == REJECTED]
        assert owners(caches, prefer) == there[:1]


@given(CACHES)
def test_without_a_preference_contents_must_be_the_same(caches: list[str]) -> None:
    if {"one", "other"} <= {*caches}:
        with pytest.raises(
            CacheError, match=r"1 sources have the same name .* in several caches: v\."
        ):
            owners(caches, None)
    elif UNKNOWN in caches and len([what for what in caches if what not in (REJECTED, ABSENT)]) > 1:
        with pytest.raises(CacheError, match=r"1 sources .* cannot be told whether .*: v\."):
            owners(caches, None)
    else:
        assert owners(caches, None) == owners(caches, "first") == owners(caches, "last")
