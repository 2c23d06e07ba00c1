"""Which files are a field's, for `clean`. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from latentcache.core.records import ShardId
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.paths import (
    FIELDS,
    array_folder,
    field_folder,
    field_index_path,
    field_json_path,
    field_sample_path,
    nulls_path,
    version_path,
)
from latentcache.format.manifest import Manifest
from latentcache.format.shards import get_format

_NAME, _VERSION = r"[a-z][a-z0-9_]*", r"\d{6}"
_BUCKET = r"[1-9]\d*x[1-9]\d*x[1-9]\d*"
_SHARD = r"(?:zarr\.json|\d{6,}\.parquet|c/\d+(?:/0)+)"
_OURS = re.compile(
    rf"{FIELDS}/{_NAME}/(?:field\.json|index\.parquet|nulls\.parquet|versions/{_VERSION}\.parquet|"
    rf"samples/{_VERSION}/{_BUCKET}/\d{{6,}}\.parquet|"
    rf"{_VERSION}/(?:{_NAME}/)?{_BUCKET}/{_SHARD})"
)


def is_field_file(path: str) -> bool:
    """Tell whether a file is named as those of some field are."""
    return _OURS.fullmatch(path) is not None


class FieldFiles:
    """The files of one field."""

    def __init__(
        self, field: FieldManifest, manifest: Manifest, retired: Collection[ShardId]
    ) -> None:
        self._field, self._manifest, self._retired = field, manifest, set(retired)
        self._format = get_format(manifest.format)
        self._layouts = manifest.layouts()
        self._num_shards = {bucket.name: bucket.num_shards for bucket in manifest.buckets}
        name = field.name
        self._fixed = {field_json_path(name), field_index_path(name), nulls_path(name)}
        self._fixed |= {version_path(name, version.number) for version in field.versions}
        self._arrays = {
            array_folder(name, version.number, array.name): (version.number, array)
            for version in field.all_versions
            for array in field.arrays
        }

    def kind(self, path: str) -> str:
        """Return `planned`, `retired` where no row of its shard counts, or nothing."""
        if path in self._fixed:
            return "planned"
        rest = path.removeprefix(f"{field_folder(self._field.name)}/").split("/")
        if rest[0] == "samples" and len(rest) == 4:
            return self._sample(path, *rest[1:])
        for folder, (version, array) in self._arrays.items():
            inner = path.removeprefix(f"{folder}/").split("/")
            if path.startswith(f"{folder}/") and inner[0] in self._layouts:
                layout = self._field.layout(array, self._manifest, self._layouts[inner[0]], version)
                if path in self._format.metadata([layout]):
                    return "planned"
                digits = re.match(r"(?:c/)?(\d{1,18})", "/".join(inner[1:]))
                if digits is None or self._format.path(layout, int(digits[1])) != path:
                    return ""
                return self._of(ShardId(inner[0], int(digits[1])))
        return ""

    def _sample(self, path: str, version: str, bucket: str, name: str) -> str:
        number = name.removesuffix(".parquet")
        if bucket not in self._layouts or not (number.isdigit() and version.isdigit()):
            return ""
        shard = ShardId(bucket, int(number))
        is_ours = int(version) <= len(self._field.all_versions)
        same = path == field_sample_path(self._field.name, int(version), shard)
        return self._of(shard) if is_ours and same else ""

    def _of(self, shard: ShardId) -> str:
        if shard.number >= self._num_shards[shard.bucket]:
            return ""
        return "retired" if shard in self._retired else "planned"
