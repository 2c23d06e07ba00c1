"""SimpleTuner (bc8e6ab): one torch file per clip, a bare tensor, in the tree of the sources.

Files are named by the SHA-256 of their source's stem: its `hash_filenames` is always on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch

from latentcache.core.posterior import normalise
from latentcache.core.spec import LatentSpec, Normaliser
from latentcache.errors import ConfigError
from latentcache.exchange.clips import (
    ClipRow,
    Latents,
    beyond,
    clip_rows,
    expect_class,
    expect_stored,
    named,
    refuse_twice,
    stem_of,
)
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import dtype_name, files_in, is_plain, load_torch, torch_bytes
from latentcache.exchange.quoting import quoted
from latentcache.exchange.records import Found, Record, bucket_from
from latentcache.format.checksum import is_sha256
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import is_url

_CLASSES = ("AutoencoderKLWan",)


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as a `cache_dir_vae`. Raises ConfigError where that cannot be right."""
    expect_class(cache, "SimpleTuner", _CLASSES)
    expect_stored(cache, "SimpleTuner", "mean")
    if options.text is not None:
        raise ConfigError(
            "--text: SimpleTuner names text files by a hash that its own run computes, so text is left to "
            "it. Nothing was written. Leave --text out."
        )
    rows = clip_rows(cache, options.bucket)
    is_imported = "import" in cache.manifest.recipe
    paths = [clip_path(row, is_imported=is_imported) for row in rows]
    refuse_twice(
        rows, paths, "SimpleTuner takes one clip of a source, and one source of a stem and folder."
    )
    latents = Normalised(cache, options.dtype or "bfloat16")
    files = [
        File(path, partial(_file, latents, row)) for row, path in zip(rows, paths, strict=True)
    ]
    sizes = sorted({row.bucket for row in rows})
    notes = [
        "SimpleTuner looks at the source files, too: its settings must give the sizes that these have"
    ]
    return Export(files=files, stanza=partial(_stanza, sizes), notes=notes)


def clip_path(row: ClipRow, *, is_imported: bool = False) -> str:
    """Return a clip's file: in its source's folder. Raises ConfigError for one outside the tree."""
    path = row.path
    if path.is_absolute() or is_url(row.source) or ".." in path.parts:
        raise ConfigError(
            f"source {named([row.source])} is no path below one folder, and SimpleTuner finds files by the "
            "source's place below instance_data_dir. Nothing was written. Make the cache from that folder: "
            "corpus.source"
        )
    stem = stem_of(path.name)
    known = is_imported and is_sha256(stem)  # by an import of such files, which name no source
    digest = stem if known else hashlib.sha256(stem.encode()).hexdigest()
    return str(path.with_name(f"{digest}.pt"))


class Normalised:
    """Normalised means of clips, in SimpleTuner's arithmetic: all of it in the VAE's data type."""

    def __init__(self, cache: Cache, dtype: str) -> None:
        self._dtype = dtype
        self._latents = Latents(cache, posterior="mode", normalise=False, dtype=dtype)
        self._normaliser = cache.spec.normaliser

    def __call__(self, row: ClipRow) -> torch.Tensor:
        """Return a clip's latents [C, t, h, w]."""
        latents = self._latents(row)
        mean, inverse = rounded(self._normaliser, latents.dtype)
        found = (latents - mean) * inverse
        if not torch.isfinite(found).all():
            raise beyond(normalise(latents.float(), self._normaliser), self._dtype, row.key)
        return found


def rounded(normaliser: Normaliser, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and 1 / std [C, 1, 1, 1] in a data type, of a std that was rounded to it."""
    mean = torch.tensor(normaliser.shift, dtype=torch.float64).to(dtype)
    std = (1 / torch.tensor(normaliser.scale, dtype=torch.float64)).to(dtype)
    return mean.view(-1, 1, 1, 1), (1.0 / std).view(-1, 1, 1, 1)


def _file(latents: Normalised, row: ClipRow) -> bytes:
    return torch_bytes(latents(row))


def _stanza(buckets: Sequence[str], url: str) -> str:
    return (
        "// SimpleTuner, multidatabackend.json: one backend, whose instance_data_dir is the "
        "corpus's folder.\n"
        f"// Its resolution and frames must give {', '.join(buckets)} (frames x height x width).\n"
        "{\n"
        '  "id": "latentcache",\n'
        '  "type": "local",\n'
        '  "dataset_type": "video",\n'
        '  "instance_data_dir": "THE_SOURCES",\n'
        f'  "cache_dir_vae": {quoted(url)}\n'
        "}"
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the clips of a `cache_dir_vae`. Raises ConfigError, CorpusError naming a file."""
    if spec.model_class not in _CLASSES:
        raise ConfigError(
            f"SimpleTuner's files of {spec.model_class} are not known; nothing was imported"
        )
    records = [_record(storage, spec, path) for path in files_in(storage, "", ".pt")]
    return Found(layout="simpletuner", stored="mean", normalised=False, records=records)


def _record(storage: Storage, spec: LatentSpec, path: str) -> Record:
    latents = _tensor(storage, path, mapped=True)
    source = str(PurePosixPath(path).with_suffix(""))
    return Record(
        key=f"{source}#0",
        source=source,
        path=path,
        bucket=bucket_from(storage, path, spec, latents.shape),
        shape=tuple(latents.shape),
        dtype=dtype_name(latents),
        load=partial(_raw, storage, path, spec),
    )


def _tensor(storage: Storage, path: str, *, mapped: bool = False) -> torch.Tensor:
    found: Any = load_torch(storage, path, mapped=mapped)
    if not is_plain(found) or found.dim() != 4:
        raise refuse(storage, path, "is no tensor [C, t, h, w]")
    tensor: torch.Tensor = found.detach()
    return tensor


def _raw(storage: Storage, path: str, spec: LatentSpec) -> torch.Tensor:
    """Return the raw latents of a file, with the numbers that normalised them."""
    latents = _tensor(storage, path)
    mean, inverse = rounded(spec.normaliser, latents.dtype)
    return latents.double() / inverse.double() + mean.double()
