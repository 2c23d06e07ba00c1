"""What has become of a folder since its import was planned: files that changed, went away or came."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentcache.core.records import Shard, ShardId, ShardReport
from latentcache.core.units import plural
from latentcache.errors import CacheError
from latentcache.exchange.clips import named
from latentcache.exchange.records import Found, Record, identity_of, path_in
from latentcache.format.commit import adopt_shard
from latentcache.format.shards import get_format
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage, redact


class Records:
    """Finds the record of a planned clip: by its key and file; else by its file, if it is all of that.

    Keys of a layout may depend on its other files, and some of these may have come since.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        self._by_key = {record.key: record for record in found.records}
        num_in = Counter(record.path for record in found.records)
        alone = [record for record in found.records if num_in[record.path] == 1]
        self._by_identity = {identity_of(record, found.layout): record for record in alone}

    def get(self, key: str, identity: str) -> Record | None:
        """Return the record of a planned clip; None if its file has changed, or is gone."""
        record = self._by_key.get(key)
        if record is not None and identity_of(record, self.found.layout) == identity:
            return record
        return self._by_identity.get(identity)


@dataclass(frozen=True, kw_only=True)
class Since:
    """What is other than planned. changed, gone: paths of files; pending: those with clips to take in yet.

    num_later: clips of files that came; num_relabelled: clips of the same files with other captions.
    same: the clips that are as planned.
    """

    changed: frozenset[str]
    gone: frozenset[str]
    pending: frozenset[str]
    num_later: int
    num_relabelled: int
    same: Found


def since_planned(planned: PlannedCache, found: Found, missing: Sequence[ShardId]) -> Since:
    """Compare a folder with what was planned of it. missing: shards that are not committed."""
    records, here = Records(found), {record.path for record in found.records}
    lacking: dict[str, set[ShardId]] = {}
    paths: set[str] = set()
    num_relabelled, same = 0, []
    for shard, key, identity, caption in _clips(planned):
        paths.add(path_in(identity))
        record = records.get(key, identity)
        if record is None:
            lacking.setdefault(path_in(identity), set()).add(shard)
        else:
            same.append(record)
            num_relabelled += record.text != caption
    waiting = {shard for shards in lacking.values() for shard in shards} & set(missing)
    # A run that was killed may have committed the last ones by their objects only.
    if all(adopted(planned, planned.plan.shard(shard)) for shard in sorted(waiting)):
        waiting = set()
    return Since(
        changed=frozenset(lacking) & here,
        gone=frozenset(lacking) - here,
        pending=frozenset(path for path, shards in lacking.items() if shards & waiting),
        num_later=sum(record.path not in paths for record in found.records) + found.num_late,
        num_relabelled=num_relabelled,
        same=dataclasses.replace(found, records=same),
    )


def _clips(planned: PlannedCache) -> Iterator[tuple[ShardId, str, str, str | None]]:
    """Yield place, key, identity and caption of all planned clips."""
    names = ("shard", "key", "identity", "caption")
    for bucket in planned.manifest.buckets:
        for table in planned.plan.plans(bucket.name):
            for shard, *clip in zip(*(table[name].to_pylist() for name in names), strict=True):
                yield ShardId(bucket.name, shard), *clip


def adopted(planned: PlannedCache, shard: Shard) -> ShardReport | None:
    """Report a shard that is committed, if need be by its object only; None: it is not."""
    manifest = planned.manifest
    layout = manifest.layouts()[shard.bucket.name]
    shard_format = get_format(manifest.format)
    return adopt_shard(planned.storage, shard_format, layout, shard, manifest.fingerprint)


def refuse_pending(since: Since, source: Storage) -> None:
    """Raise CacheError if a file is not what was planned, and clips of it are still to be taken in."""
    if since.pending:
        changed, gone = since.changed & since.pending, since.gone & since.pending
        raise CacheError(
            f"{_what(changed, gone, source)}, before all of their clips were taken in: "
            f"{named(sorted(since.pending))}. Nothing was changed, and what was imported stays. Put these "
            "files back as they were, with their times of change, and run this again; or import the folder "
            "into another cache."
        )


def notes_of(since: Since, source: Storage) -> Iterator[str]:
    """Yield what the cache has other than the folder has now, a sentence each."""
    another = "import the folder into another cache"
    if since.changed or since.gone:
        files = named(sorted(since.changed | since.gone))
        yield (
            f"{_what(since.changed, since.gone, source)}: {files}. The cache keeps what was imported of "
            f"them. To have the folder as it is now, {another}"
        )
    if since.num_relabelled:
        yield (
            f"{redact(source.url)}: the captions of {plural(since.num_relabelled, 'clip')} changed since "
            f"this import was planned. The cache keeps those of then. To have those of now, {another}"
        )
    if since.num_later:
        yield (
            f"{plural(since.num_later, 'clip')} of {redact(source.url)} came after this import was "
            f"planned, too late for it. To have all, {another}"
        )


def _what(changed: frozenset[str], gone: frozenset[str], source: Storage) -> str:
    parts = [
        f"{plural(len(paths), 'file')} {what}"
        for paths, what in ((changed, "changed"), (gone, "went away"))
        if paths
    ]
    return f"{redact(source.url)}: {' and '.join(parts)} since this import was planned"
