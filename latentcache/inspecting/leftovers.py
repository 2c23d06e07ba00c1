"""Clean: what a cache's folder holds that no plan refers to. It only decides; nothing is touched here.

A cache never deletes by itself. A write that was cut off leaves its temporary file. Planning that was
cut off and repeated with another configuration leaves the first one's tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from latentcache.corpus.saved_probes import is_saved_probe
from latentcache.format.manifest import Manifest
from latentcache.format.paths import CACHE_JSON, INDEX, REJECTED, plan_path, sample_path
from latentcache.format.shards import get_format
from latentcache.running.log_lines import is_log
from latentcache.storage.folder import StoredFile

#: Age from which a temporary file counts as abandoned; a write takes seconds.
TEMPORARY_AGE_S = 3600.0
#: Names of temporary files as `Storage.write` makes them, beside the file that they were to become.
_TEMPORARY = re.compile(r"(?:.*/)?\.[^/]+\.[0-9a-f]{32}\.tmp")
_BUCKET = r"([1-9]\d*x[1-9]\d*x[1-9]\d*)"
#: Everything that a plan or a commit of either format writes for a bucket.
_OURS = re.compile(
    rf"plan/{_BUCKET}\.parquet|samples/{_BUCKET}/\d{{6,}}\.parquet|latents/{_BUCKET}/"
    r"(?:zarr\.json|\d{6,}\.parquet|c/\d+(?:/0)+)"
)


@dataclass(kw_only=True)
class Leftovers:
    """What is in a cache's folder beyond the cache, by path.

    temporary: of interrupted writes and planning. unplanned: of buckets and shards that are not in the
    plan. Both can go. recent: temporary, and perhaps being written. foreign: not of a cache, and left
    untouched.
    """

    temporary: list[StoredFile] = field(default_factory=list)
    unplanned: list[StoredFile] = field(default_factory=list)
    recent: list[StoredFile] = field(default_factory=list)
    foreign: list[StoredFile] = field(default_factory=list)

    @property
    def removable(self) -> list[StoredFile]:
        """What cleaning removes."""
        return [*self.temporary, *self.unplanned]


def find_leftovers(files: Iterable[StoredFile], manifest: Manifest, now_s: float) -> Leftovers:
    """Sort out the files that do not belong to the cache. now_s: since the epoch.

    Shard objects of the plan without a sample table belong to the cache: they are being committed, or a
    resumed run writes them again.
    """
    found, planned = Leftovers(), _Planned(manifest)
    for file in files:
        if planned.has(file.path) and not file.is_link:
            continue
        if file.is_link:
            found.foreign.append(file)
        elif _is_temporary(file.path):
            old = file.modified_s is not None and now_s - file.modified_s > TEMPORARY_AGE_S
            (found.temporary if old else found.recent).append(file)
        elif _OURS.fullmatch(file.path):
            found.unplanned.append(file)
        else:
            found.foreign.append(file)
    return found


def _is_temporary(path: str) -> bool:
    """Tell whether a file is from planning or from a write that was cut off."""
    return is_saved_probe(path) or bool(_TEMPORARY.fullmatch(path) and _is_of_cache(path))


def _is_of_cache(path: str) -> bool:
    """Tell whether a temporary file was to become an object of a cache."""
    folder, _, name = path.rpartition("/")
    final = f"{folder}/{name[1:-37]}" if folder else name[1:-37]
    fixed = (CACHE_JSON, INDEX, "zarr.json", "latents/zarr.json", sample_path(REJECTED, 0))
    return (
        final in fixed
        or _OURS.fullmatch(final) is not None
        or is_log(final)
        or is_saved_probe(final)
    )


class _Planned:
    """The paths of a cache's objects."""

    def __init__(self, manifest: Manifest) -> None:
        self._format, self._layouts = get_format(manifest.format), manifest.layouts()
        self._num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
        self._fixed = {
            CACHE_JSON,
            INDEX,
            sample_path(REJECTED, 0),
            *map(plan_path, self._layouts),
            *self._format.metadata(list(self._layouts.values())),
        }

    def has(self, path: str) -> bool:
        if path in self._fixed or is_log(path):
            return True
        kind, _, rest = path.partition("/")
        bucket, _, name = rest.partition("/")
        digits = re.match(r"(?:c/)?(\d{1,18})", name)
        if bucket not in self._layouts or digits is None:
            return False
        shard = int(digits[1])
        paths = {
            "samples": sample_path(bucket, shard),
            "latents": self._format.path(self._layouts[bucket], shard),
        }
        return shard < self._num_shards[bucket] and paths.get(kind) == path
