"""Which of several caches are right about a source: those that have the content that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from latentcache.errors import CacheError
from latentcache.planning.known_sources import KnownSource

#: Which of several caches is right about a source: the first that has it, or the last.
Prefer = Literal["first", "last"]
#: By the name of a source that several caches have: the numbers of those whose clips and facts count.
Owners = Mapping[str, frozenset[int]]
#: Sources that an error names.
NAMED = 5


def owners_of(caches: Sequence[Mapping[str, KnownSource]], prefer: Prefer | None) -> Owners:
    """Return the owners of the sources that several caches have. caches: the sources of each, by name.

    Raises CacheError for sources of different content, unless `prefer` says which.
    """
    found: dict[str, dict[int, KnownSource]] = {}
    for number, sources in enumerate(caches):
        for name, source in sources.items():
            found.setdefault(name, {})[number] = source
    shared = {name: by_cache for name, by_cache in found.items() if len(by_cache) > 1}
    different = [name for name, of in shared.items() if len({*_identities(of).values()}) > 1]
    if different and prefer is None:
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise CacheError(
            f"{len(different)} sources have the same name and other content in several caches: "
            f"{', '.join(sorted(different)[:NAMED])}{more}. Nothing was written. Say whose clips to take: "
            "--prefer first, or --prefer last"
        )
    return {name: _right_ones(by_cache, prefer) for name, by_cache in shared.items()}


def _right_ones(sources: Mapping[int, KnownSource], prefer: Prefer | None) -> frozenset[int]:
    """Return the caches that have the content that counts; if all have rejected it, the first one."""
    identities = _identities(sources)
    if not identities:
        return frozenset({min(sources)})
    right = identities[max(identities) if prefer == "last" else min(identities)]
    return frozenset(number for number, identity in identities.items() if identity == right)


def _identities(sources: Mapping[int, KnownSource]) -> dict[int, str | None]:
    """Return the content of a source in the caches that take it, by their numbers."""
    return {number: source.identity for number, source in sources.items() if not source.is_rejected}


def is_owner(owners: Owners, source: str, number: int) -> bool:
    """Tell whether a cache that has a source is right about it."""
    return source not in owners or number in owners[source]
