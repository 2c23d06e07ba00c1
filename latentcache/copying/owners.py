"""Which of several caches are right about a source: those that have the content that counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from latentcache.core.units import some_of
from latentcache.errors import CacheError
from latentcache.planning.known_sources import KnownSource

#: Which of several caches is right about a source: the first that has it, or the last.
Prefer = Literal["first", "last"]
#: By the name of a source that several caches have: the numbers of those whose clips and facts count.
Owners = Mapping[str, frozenset[int]]


def owners_of(caches: Sequence[Mapping[str, KnownSource]], prefer: Prefer | None) -> Owners:
    """Return the owners of the sources that several caches have. caches: the sources of each, by name.

    Raises CacheError for sources of different content, or of content that some cache does not know, unless
    `prefer` says which.
    """
    found: dict[str, dict[int, KnownSource]] = {}
    for number, sources in enumerate(caches):
        for name, source in sources.items():
            found.setdefault(name, {})[number] = source
    shared = {name: by_cache for name, by_cache in found.items() if len(by_cache) > 1}
    if prefer is None:
        _check_same(shared)
    return {name: _right_ones(by_cache, prefer) for name, by_cache in shared.items()}


def _check_same(shared: Mapping[str, Mapping[int, KnownSource]]) -> None:
    """Raise CacheError unless the caches that take a source are known to have the same content of it."""
    contents = {name: _identities(by_cache) for name, by_cache in shared.items()}
    different = [name for name, of in contents.items() if len({*of.values()} - {None}) > 1]
    unknown = [name for name, of in contents.items() if len(of) > 1 and None in of.values()]
    say_whose = "Say whose clips to take: --prefer first, or --prefer last"
    if different:
        raise CacheError(
            f"{len(different)} sources have the same name and other content in several caches: "
            f"{some_of(sorted(different))}. Nothing was written. {say_whose}"
        )
    if unknown:
        raise CacheError(
            f"{len(unknown)} sources have the same name in several caches, and not all of these know their "
            f"content, so that it cannot be told whether it is the same: {some_of(sorted(unknown))}. "
            "Nothing was written. `latentcache precompute` on each cache with its corpus finds the content "
            f"of its sources. {say_whose}"
        )


def _right_ones(sources: Mapping[int, KnownSource], prefer: Prefer | None) -> frozenset[int]:
    """Return the caches that have the content that counts; if all have rejected it, the first one.

    Content that is not known is no other cache's.
    """
    identities = _identities(sources)
    if not identities:
        return frozenset({min(sources)})
    chosen = max(identities) if prefer == "last" else min(identities)
    right = identities[chosen]
    same = [n for n, identity in identities.items() if identity == right and right is not None]
    return frozenset({chosen, *same})


def _identities(sources: Mapping[int, KnownSource]) -> dict[int, str | None]:
    """Return the content of a source in the caches that take it, by their numbers."""
    return {number: source.identity for number, source in sources.items() if not source.is_rejected}


def is_owner(owners: Owners, source: str, number: int) -> bool:
    """Tell whether a cache that has a source is right about it."""
    return source not in owners or number in owners[source]
