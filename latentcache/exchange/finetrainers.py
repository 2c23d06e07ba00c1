"""finetrainers (f476c37): numbered pairs of torch files: latents with log-variance, and conditions."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from latentcache.core.spec import LatentSpec, Normaliser
from latentcache.errors import ConfigError
from latentcache.exchange.clips import (
    ClipRow,
    clip_rows,
    converted,
    expect_class,
    expect_stored,
)
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import dtype_name, is_plain, load_torch, names_in, torch_bytes
from latentcache.exchange.records import Found, Record, bucket_from
from latentcache.exchange.texts import Texts
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage

FOLDER = "finetrainers-precomputed-data"
#: Tokens of text that each model takes.
_LENGTHS = {"AutoencoderKLWan": 512, "AutoencoderKLCogVideoX": 226}
#: Models whose moments stand frames first: [1, t, 2C, h, w].
_FRAMES_FIRST = {"AutoencoderKLCogVideoX"}
_NAME = re.compile(r"latent-(\d+)\.pt")


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as finetrainers' precomputed data. Raises ConfigError where that cannot be right."""
    expect_class(cache, "finetrainers", _LENGTHS)
    expect_stored(cache, "finetrainers", "moments")
    if options.text is None:
        raise ConfigError(
            "finetrainers reads a condition beside each latent, so the text's states must be written, too. "
            "Nothing was written. Add a field of kind text with latentcache add-field, and name it: --text"
        )
    rows = clip_rows(cache, options.bucket)
    # It reads in order, and never shuffles.
    random.Random(options.seed).shuffle(rows)  # noqa: S311 - an order is no secret
    texts = Texts(cache, options.text, rows, at_most=_LENGTHS[cache.spec.model_class])
    latents = Moments(cache, options.dtype)
    files = []
    for number, row in enumerate(rows):
        files.append(File(f"{FOLDER}/latent-{number}.pt", partial(_latent_file, latents, row)))
        make = partial(_condition_file, cache, texts, row)
        files.append(File(f"{FOLDER}/condition-{number}.pt", make))
    return Export(files=files, stanza=partial(_stanza, len(rows)), notes=texts.notes)


class Moments:
    """Stored moments [2C, t, h, w] of clips, raw."""

    def __init__(self, cache: Cache, dtype: str | None) -> None:
        self.spec = cache.spec
        self._cache, self._dtype = cache, dtype or cache.spec.dtype

    def __call__(self, row: ClipRow) -> torch.Tensor:
        """Return a clip's moments."""
        return converted(self._cache.stored(row.number), self._dtype, row.key)


def latent_dict(moments: torch.Tensor, spec: LatentSpec) -> dict[str, torch.Tensor]:
    """Return what its loss reads of moments [2C, t, h, w].

    latents_std holds 1 / std: the name misleads, and its loss multiplies by it.
    """
    if spec.model_class in _FRAMES_FIRST:
        return {"latents": moments.transpose(0, 1).unsqueeze(0).contiguous()}
    shift, scale = _per_channel(spec.normaliser, spec.channels)
    return {"latents": moments.unsqueeze(0), "latents_mean": shift, "latents_std": scale}


def _per_channel(normaliser: Normaliser, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    shift, scale = (
        torch.tensor(v, dtype=torch.float32) for v in (normaliser.shift, normaliser.scale)
    )
    if len(shift) not in (1, channels) or len(scale) not in (1, channels):
        raise ConfigError(f"finetrainers takes one mean per channel, and there are {len(shift)}")
    return shift.expand(channels).clone(), scale.expand(channels).clone()


def _latent_file(latents: Moments, row: ClipRow) -> bytes:
    return torch_bytes(latent_dict(latents(row), latents.spec))


def condition_dict(cache: Cache, texts: Texts, row: ClipRow) -> dict[str, torch.Tensor]:
    """Return a clip's condition: states [1, L, D], zeros behind the text, and a mask for CogVideoX."""
    length = _LENGTHS[cache.spec.model_class]
    states = texts.padded(row, length)
    found = {"encoder_hidden_states": states.unsqueeze(0)}
    if cache.spec.model_class in _FRAMES_FIRST:
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, : len(texts.unpadded(row))] = True
        found["prompt_attention_mask"] = mask
    return found


def _condition_file(cache: Cache, texts: Texts, row: ClipRow) -> bytes:
    return torch_bytes(condition_dict(cache, texts, row))


def _stanza(num_clips: int, url: str) -> str:
    return (
        "# finetrainers, arguments. Rank r of w reads items r * (N // w) to (r + 1) * (N // w), "
        "in this order.\n"
        "--enable_precomputation --precomputation_once --precomputation_reuse \\\n"
        f"--precomputation_items {num_clips} --precomputation_dir {shlex.quote(url)}"
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the clips of a `precomputation_dir`. Raises ConfigError, CorpusError naming a file."""
    names = names_in(storage, FOLDER, ".pt")
    numbers = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
    records = [_record(storage, spec, number) for number in numbers]
    return Found(layout="finetrainers", stored="moments", normalised=False, records=records)


def _record(storage: Storage, spec: LatentSpec, number: int) -> Record:
    path = f"{FOLDER}/latent-{number}.pt"
    moments = _moments(storage, path, spec, mapped=True)
    return Record(
        key=f"{number:09d}#0",
        source=f"{number:09d}",
        path=path,
        bucket=bucket_from(storage, path, spec, moments.shape),
        shape=tuple(moments.shape),
        dtype=dtype_name(moments),
        load=partial(_moments, storage, path, spec),
    )


def _moments(
    storage: Storage, path: str, spec: LatentSpec, *, mapped: bool = False
) -> torch.Tensor:
    """Return the moments [2C, t, h, w] of a file, which must be those of the encoder's normaliser."""
    found: Any = load_torch(storage, path, mapped=mapped)
    latents: Any = found.get("latents") if isinstance(found, Mapping) else None
    if not is_plain(latents) or latents.dim() != 5 or len(latents) != 1:
        raise refuse(storage, path, "is no dict with latents [1, 2C, t, h, w]")
    whole: torch.Tensor = latents[0].detach()
    moments = whole.transpose(0, 1) if spec.model_class in _FRAMES_FIRST else whole
    if "latents_mean" in found and "latents_std" in found:
        wanted = _per_channel(spec.normaliser, spec.channels)
        given = (found["latents_mean"], found["latents_std"])
        same = all(
            is_plain(g)
            and g.numel() == w.numel()
            and torch.allclose(g.float().flatten(), w, rtol=1e-2, atol=1e-2)
            for g, w in zip(given, wanted, strict=True)
        )
        if not same:
            raise refuse(
                storage, path, f"has other means and scales than {spec.model_class} of --like"
            )
    return moments
