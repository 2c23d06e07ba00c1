"""URLs of a cache's clips: `cache://URL`, and `cache://URL/BUCKET/SHARD/ROW` for one of them. No I/O."""

from __future__ import annotations

from latentcache.storage.urls import refused_scheme

PREFIX = "cache://"


def is_cache_url(url: str) -> bool:
    """Tell whether a source, or a corpus, is a clip, or are the clips, of a cache."""
    return url.startswith(PREFIX)


def cache_of(source: str) -> str:
    """Return the URL of the cache that a corpus names."""
    return source.removeprefix(PREFIX)


def clip_url(cache_url: str, bucket: str, shard: int, row: int) -> str:
    """Return the URL of a clip of a cache."""
    return f"{PREFIX}{cache_url}/{bucket}/{shard}/{row}"


def split_clip_url(url: str) -> tuple[str, str, int, int]:
    """Return cache, bucket, shard and row of a clip's URL. Raises ValueError if it is none."""
    parts = cache_of(url).rsplit("/", 3)
    if not is_cache_url(url) or len(parts) != 4 or not all(map(_is_number, parts[2:])):
        raise ValueError("it is no URL of a cache's clip")
    return parts[0], parts[1], int(parts[2]), int(parts[3])


def refused_cache(source: str, named: tuple[str, ...] | list[str]) -> str | None:
    """Return why the storage of a cache may not be opened, in words; None if it may."""
    return refused_scheme(cache_of(source), named)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
