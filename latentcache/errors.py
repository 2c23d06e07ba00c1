"""What can go wrong, and for whom.

LatentCacheError            anything this package raises on purpose
├── ConfigError             the config file or the command line
│   └── GeometryError       frames or sizes that the encoder cannot take
├── CorpusError             the table of sources
├── StorageError            object storage: unknown scheme, no access, disk full
│   ├── UnreachableError    it did not answer, even after several tries
│   ├── SourceError         that of a source: it cannot be read, which says nothing about the source
│   └── LeaseError          another run has the lease of a cache whose storage needs one
├── MachineError            this machine lacks threads, files or disk space, or kills decoding processes
├── CacheError              what is on storage is not a usable cache
│   ├── RecipeMismatchError the recipe, the sources or the weights differ from the cache's
│   └── CorruptionError     bytes that fail their CRC32C, or that are missing although a table says ok
├── EncoderError            an encoder cannot be built or broke its contract
├── ShardError              a shard failed as a whole; it is retried
├── RunStoppedError         a run stopped itself: nearly everything failed, the latents decode wrongly, or
│                           an import failed
└── ClipError               one clip failed; it is recorded with its reason and skipped

A job that one of these ends exits with its `exit_status`: 2 where the config, the command line, the corpus
or the cache that was named is wrong, so that the same command fails again; 1 for all else, such as storage
that refuses or does not answer, the cache's or the corpus's, in every job.

Messages say what was wrong, what was got, the consequence and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

from latentcache.redaction import printable, redact


class LatentCacheError(Exception):
    """Base of every error that latentcache raises on purpose. exit_status: of a job that it ends."""

    exit_status: ClassVar[int] = 1


class ConfigError(LatentCacheError, ValueError):
    """The configuration or the command line is wrong."""

    exit_status = 2


class GeometryError(ConfigError):
    """A number of frames or a size that the encoder cannot take."""


class CorpusError(LatentCacheError, ValueError):
    """The table of sources is empty, unreadable or lacks a column."""

    exit_status = 2


class StorageError(LatentCacheError, OSError):
    """Object storage refused: unknown scheme, missing package, no access, no room."""


class UnreachableError(StorageError):
    """Object storage did not answer, or stayed too busy, for all tries."""


class SourceError(StorageError):
    """A source cannot be read, after several tries. Nothing is recorded against it."""


class LeaseError(StorageError):
    """Another run has the lease of a cache, on storage that cannot create on condition."""


class MachineError(LatentCacheError, RuntimeError):
    """The machine lacks something that decoding needs, which says nothing about what was decoded."""


class CacheError(LatentCacheError, ValueError):
    """What is on storage is not a cache that this version can use."""

    exit_status = 2


class RecipeMismatchError(CacheError):
    """The recipe, a source or the weights differ from what the cache was made with."""


class CorruptionError(CacheError):
    """Stored bytes are missing or fail their checksum."""

    exit_status = 1


class EncoderError(LatentCacheError, RuntimeError):
    """An encoder cannot be built, or did not return what its spec says."""


class ShardError(LatentCacheError, RuntimeError):
    """A shard failed as a whole."""


class RunStoppedError(LatentCacheError, RuntimeError):
    """A run stopped itself: nearly everything failed, the latents decode wrongly, or an import failed."""


class ClipError(LatentCacheError, ValueError):
    """One clip failed; `reason` is one of `records.REASONS`, the message is for people.

    The message is stored and shown in many places, so it loses the secrets of URLs and everything
    unprintable here.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(printable(redact(message)))
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def broken_installation(why: str) -> str:
    """Return the message of an import that failed, which is never a clip's failure."""
    return (
        f"the installation is broken: {why}. Nothing is recorded as failed for it. Install what is missing "
        "on every machine of the run, and run the same command again."
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, or an empty string if no known word is near `word`."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
