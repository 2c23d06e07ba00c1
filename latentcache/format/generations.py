"""Generations: the steps by which a cache grows, each written once, in order, and never changed.

A step's tables come first, under a name that holds their digest. Its JSON comes last and makes it count:
`generations/000002.json` is created only if it is not there, so that of two runs one comes second, sees
the other's step, and looks again at what is left to do. docs/format.md has the whole form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import pydantic

from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.damage import damaged
from latentcache.format.kept_schema import kept_schema
from latentcache.format.paths import GENERATIONS, generation_path, number_of_generation
from latentcache.format.tables import read_bounded, read_large, read_sealed
from latentcache.storage.folder import Storage
from latentcache.storage.spill import Data
from latentcache.storage.urls import redact

#: plan: the first; grow: sources that are new or changed, captions; retry: failed clips; repair: damaged
#: ones; compact: rows that were copied into full shards; merge, copy: the first, of rows of other caches;
#: import: the first, of files of another program.
Kind = Literal["plan", "grow", "retry", "repair", "compact", "merge", "copy", "import"]
KINDS: tuple[str, ...] = get_args(Kind)
#: A step of a thousand buckets takes 100 kB.
MAX_GENERATION_BYTES = 1 << 22
#: Steps that are read at a time; they are small, so requests overlap to hide latency.
NUM_THREADS = 16
MAX_GENERATIONS = 1_000_000
DIGEST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a generation adds to a bucket: shards from `first_shard` on, for `num_clips` clips."""

    bucket: str
    first_shard: int
    num_shards: int
    num_clips: int


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A cache whose rows were copied, or are decoded: what it was.

    url: without credentials; sha256: of its generation.
    """

    url: str
    fingerprint: str
    generation: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One step. parts: the shards that it adds, one entry per bucket.

    tables_sha256: of the step's tables, by path. parent_sha256: of the JSON of the step before. created_s:
    since the epoch. num_sources: those that it says something of; num_rejected: those that give no clip;
    num_moved: those that are at another URL now; num_retired: rows that no longer count; num_copied:
    rows that it copies into other shards; num_relabelled: clips whose captions or kept columns it changes.
    parents: the caches that its rows are copied from, num_imported of them, or whose clips it decodes;
    selection: which, in words. corpus: the folder of the corpus that it was planned from, where relative
    paths in the corpus's columns start; empty if it was none, or several. takes_over: that corpus names
    sources that came from one in another folder, and that are where they were. kept: names and types of the
    columns from the corpus that its plans and changed columns have, see `kept_schema`.
    """

    number: int
    kind: Kind
    fingerprint: str
    parent_sha256: str | None
    tables_sha256: str
    created_s: float
    parts: tuple[Part, ...] = ()
    num_sources: int = 0
    num_rejected: int = 0
    num_moved: int = 0
    num_retired: int = 0
    num_copied: int = 0
    num_relabelled: int = 0
    num_imported: int = 0
    parents: tuple[Parent, ...] = ()
    selection: str = ""
    corpus: str = ""
    takes_over: bool = False
    kept: str

    @property
    def folder(self) -> str:
        """The name of its tables' folder: its number, and the beginning of their digest."""
        return folder_name(self.number, self.tables_sha256)

    def to_bytes(self) -> bytes:
        """Return the JSON text, sealed."""
        data = dataclasses.asdict(self)
        for name in ("corpus", "takes_over"):
            if not data[name]:
                del data[name]
        return checksum.seal_json(data)

    @property
    def sha256(self) -> str:
        """Digest of its JSON, which the next generation repeats."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


_ADAPTER = pydantic.TypeAdapter(Generation)


def folder_name(number: int, tables_sha256: str) -> str:
    """Return the name of a step's folder of tables."""
    return f"{number:06d}-{tables_sha256[:DIGEST_SHOWN]}"


def digest_of(tables: Mapping[str, Data]) -> str:
    """Return the SHA-256 of tables by name, which their order does not change."""
    digest = hashlib.sha256()
    for name, data in sorted(tables.items()):
        digest.update(f"{name}\n{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def read_generations(storage: Storage, known: Sequence[Generation] = ()) -> tuple[Generation, ...]:
    """Read all generations of a cache, in order. known: the first ones, where they were read before.

    Raises CacheError, and CorruptionError where one is missing, damaged, or does not follow its parent.
    """
    names = storage.list(GENERATIONS)
    numbers = sorted(n for n in map(number_of_generation, names) if n is not None)
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) > MAX_GENERATIONS:
        first = next(n for n in range(1, len(numbers) + 2) if n not in numbers)
        raise damaged(storage, generation_path(first), "is missing, and later ones are there")
    wanted = numbers[len(known) :]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(lambda number: _read(storage, number), wanted))
    generations = (*known, *found)
    _check_chain(storage, generations)
    return generations


def _read(storage: Storage, number: int) -> Generation:
    path = generation_path(number)
    try:
        data = read_sealed(storage, path, MAX_GENERATION_BYTES)
        checksum.check(data)
        raw = parse_json(data)
        raw.pop(checksum.KEY, None)
        generation = _ADAPTER.validate_json(json.dumps(raw), strict=True)
        _check(generation, number)
    except CorruptionError:
        raise
    except OTHER_SHAPE as error:
        raise damaged(storage, path, f"is no generation: {fault_of(error)}") from None
    return generation


def _check(generation: Generation, number: int) -> None:
    """Raise ValueError unless its numbers are possible."""
    if generation.number != number:
        raise ValueError(f"it says that it is number {generation.number}")
    if not checksum.is_sha256(generation.tables_sha256):  # which is part of paths
        raise ValueError("the digest of its tables is no SHA-256")
    if not math.isfinite(generation.created_s):
        raise ValueError("its time is not finite")
    kept_schema(generation.kept)
    names = [field.name for field in dataclasses.fields(generation)]
    values = [getattr(generation, name) for name in names if name.startswith("num_")]
    for part in generation.parts:
        values += [part.first_shard, part.num_shards - 1, part.num_clips - 1]
    if min(values) < 0 or max(values) > 1 << 40:
        raise ValueError("it has counts that cannot be")


def _check_chain(storage: Storage, generations: Sequence[Generation]) -> None:
    for before, after in itertools.pairwise(generations):
        if after.parent_sha256 != before.sha256:
            what = f"does not follow {generation_path(before.number)}: one of them was replaced"
            raise damaged(storage, generation_path(after.number), what)
    ends: dict[str, int] = {}
    for generation in generations:
        for part in generation.parts:
            if part.first_shard != ends.get(part.bucket, 0):
                what = (
                    f"adds shard {part.first_shard} to bucket {part.bucket}, which does not follow"
                )
                raise damaged(storage, generation_path(generation.number), what)
            ends[part.bucket] = part.first_shard + part.num_shards


def append(
    storage: Storage,
    generation: Generation,
    tables: Mapping[str, Data],
) -> bool:
    """Write a step's tables by path, then its JSON; returns whether it counts.

    False: another run has written a step of that number first. Its own tables then count for nothing,
    and `latentcache clean` removes them. Raises StorageError.
    """
    for path, data in tables.items():
        _write_table(storage, path, data)
    name, data = generation_path(generation.number), generation.to_bytes()
    # After a lost answer, what is there is this step.
    if not storage.create(name, data) and read_bounded(storage, name, MAX_GENERATION_BYTES) != data:
        return False
    _put_back(storage, tables)
    return True


def _put_back(storage: Storage, tables: Mapping[str, Data]) -> None:
    """Write tables that are gone: of no generation yet, they were `clean`'s if writing took hours."""
    there: dict[str, set[str]] = {}
    for path, data in tables.items():
        folder, _, name = path.rpartition("/")
        if folder not in there:
            there[folder] = set(storage.names(folder))
        if name not in there[folder]:
            _write_table(storage, path, data)


def _write_table(storage: Storage, path: str, data: Data) -> None:
    """Create a table whose path holds its digest: what is there is the same, or damaged."""
    if not storage.create(path, data):
        try:
            same = memoryview(read_large(storage, path, len(data))) == memoryview(data)
        except (FileNotFoundError, CorruptionError):
            same = False
        if not same:
            storage.write(path, data)


def require(storage: Storage, generations: Sequence[Generation]) -> None:
    """Raise CacheError unless there is a plan."""
    if not generations:
        url = redact(storage.url)
        here = shlex.quote(url)
        raise CacheError(
            f"{url}: nothing is planned yet: the job that makes this cache is still to plan it, or was "
            "stopped before. Go on with the command that the job was started with, as any other would make "
            f"another cache: latentcache precompute CONFIG.yaml cache.url={here}, latentcache copy "
            f"CACHE_URL {here}, latentcache merge CACHE_URL CACHE_URL -o {here}, or latentcache import "
            f"LAYOUT FOLDER {here}"
        )
