"""rCM (5b41aa9): tar files of normalised latents, umT5 states and prompts, in bfloat16."""

from __future__ import annotations

import glob
import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, Latents, clip_rows, expect_class, one_bucket
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import (
    dtype_name,
    names_in,
    torch_bytes,
)
from latentcache.exchange.quoting import hydra_value
from latentcache.exchange.records import Found, Record, bucket_from
from latentcache.exchange.stopping import in_turns
from latentcache.exchange.tar import (
    Member,
    in_groups,
    no_tensor,
    read_members,
    tar_bytes,
    tensor_in,
)
from latentcache.exchange.texts import Texts
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage

DTYPE, TOKENS = "bfloat16", 512
LATENT, EMBED, PROMPT = ".latent.pt", ".embed.pt", ".prompt.txt"
_CLASSES = ("AutoencoderKLWan",)


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as rCM's shards. Raises ConfigError where that cannot be right."""
    expect_class(cache, "rCM", _CLASSES)
    if options.dtype not in (None, DTYPE):
        raise ConfigError(f"--dtype {options.dtype}: rCM's files are in {DTYPE}")
    if options.text is None:
        raise ConfigError(
            "rCM reads umT5 states beside each latent. Nothing was written. Add a field of kind text with "
            "latentcache add-field, and name it: --text"
        )
    rows = clip_rows(cache, options.bucket)
    bucket = one_bucket(rows, "rCM stacks the samples of its shards")
    texts = Texts(cache, options.text, rows, at_most=TOKENS)
    latents = Latents(cache, posterior="mode", normalise=True, dtype=DTYPE)
    row_bytes = 2 * math.prod(cache.buckets[bucket.name].shape) + 2 * TOKENS * texts.array.shape[1]
    groups = in_groups(list(enumerate(rows)), [row_bytes] * len(rows))
    files = [
        File(f"shard_{number:06d}.tar", partial(_file, latents, texts, group))
        for number, group in enumerate(groups)
    ]
    t = cache.buckets[bucket.name].shape[1]
    return Export(
        files=files,
        stanza=partial(_stanza, t),
        file_bytes=row_bytes * len(groups[0]),
        notes=texts.notes,
    )


def _file(latents: Latents, texts: Texts, rows: Sequence[tuple[int, ClipRow]]) -> bytes:
    return tar_bytes(_members(latents, texts, rows))


def _members(
    latents: Latents, texts: Texts, rows: Sequence[tuple[int, ClipRow]]
) -> Iterator[tuple[str, bytes]]:
    for number, row in itertools.chain.from_iterable(in_turns(rows)):
        yield f"{number:09d}{LATENT}", torch_bytes(latents(row))
        yield f"{number:09d}{EMBED}", torch_bytes(texts.padded(row, TOKENS, DTYPE))
        yield f"{number:09d}{PROMPT}", texts.text(row).encode()


def _stanza(t: int, url: str) -> str:
    pattern = hydra_value(f"{glob.escape(url)}/shard_*.tar")
    return (
        "# rCM, arguments. It cuts to the first state_t latents, and leaves out a short last batch.\n"
        f"{shlex.quote(f'dataloader_train.tar_path_pattern={pattern}')} model.config.state_t={t}"
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the samples of rCM's shards, which a sampler made. Raises ConfigError, CorpusError."""
    if spec.model_class not in _CLASSES:
        raise ConfigError(f"rCM has no latents of {spec.model_class}; nothing was imported")
    records = []
    for path in names_in(storage, "", ".tar"):
        members = {member.name: member for member in read_members(storage, path)}
        for name, member in members.items():
            if name.endswith(LATENT):
                prompt = members.get(name.removesuffix(LATENT) + PROMPT)
                records.append(_record(storage, spec, member, prompt))
    return Found(layout="rcm", stored="sample", normalised=True, records=records, origin="sampler")


def _record(storage: Storage, spec: LatentSpec, member: Member, prompt: Member | None) -> Record:
    latents = _latents_in(storage, member)
    name = member.name.removesuffix(LATENT)
    text = prompt.read(storage).decode("utf-8", "replace") if prompt else None
    return Record(
        key=f"{name}#0",
        source=name,
        path=member.path,
        bucket=bucket_from(storage, member.path, spec, latents.shape),
        shape=tuple(latents.shape),
        dtype=dtype_name(latents),
        load=partial(_latents_in, storage, member),
        caption=text,
    )


def _latents_in(storage: Storage, member: Member) -> torch.Tensor:
    """Return the latents of a member. Raises CorpusError."""
    latents = tensor_in(storage, member)
    if latents.dim() < 3:
        raise no_tensor(storage, member)
    return latents
