"""finetrainers (f476c37): numbered pairs of torch files: latents with log-variance, and conditions."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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


@dataclass(frozen=True, kw_only=True)
class Model:
    """What finetrainers reads of a model's clips: see the `forward` of its specification.

    tokens: of a text; mask: the name of the text's mask; frames_first: moments are [1, t, 2C, h, w];
    statistics: what its `latents_std` is, beside `latents_mean`; sizes: latent frames, height and width are
    there, too.
    """

    tokens: int
    mask: str | None = None
    frames_first: bool = False
    statistics: Literal["std", "1/std"] | None = None
    sizes: bool = False
    note: str | None = None


_MODELS = {
    "AutoencoderKLWan": Model(tokens=512, statistics="1/std"),
    "AutoencoderKLCogVideoX": Model(tokens=226, mask="prompt_attention_mask", frames_first=True),
    "AutoencoderKLLTXVideo": Model(
        tokens=128,
        mask="encoder_attention_mask",
        statistics="std",
        sizes=True,
        note="finetrainers trains LTX with --batch_size 1 only, since it has one clip's means for a batch",
    ),
}
#: Moments as they are, which HunyuanVideo's are.
_PLAIN = Model(tokens=0)
#: Of HunyuanVideo it reads several states of a text.
_HUNYUAN = "AutoencoderKLHunyuanVideo"
_NAME = re.compile(r"latent-(\d+)\.pt")


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as finetrainers' precomputed data. Raises ConfigError where that cannot be right."""
    if cache.spec.model_class == _HUNYUAN:
        raise ConfigError(
            "finetrainers reads three arrays of a text for HunyuanVideo: LLaMA's states, their mask, and "
            "the pooled state of CLIP. No one field holds them, so nothing was written. Have finetrainers "
            "precompute its data, or export to musubi, or to webdataset with both fields."
        )
    expect_class(cache, "finetrainers", _MODELS)
    model = _MODELS[cache.spec.model_class]
    expect_stored(cache, "finetrainers", "moments")
    if options.text is None:
        raise ConfigError(
            "finetrainers reads a condition beside each latent, so the text's states must be written, too. "
            "Nothing was written. Add a field of kind text with latentcache add-field, and name it: --text"
        )
    rows = clip_rows(cache, options.bucket)
    # It reads in order, and never shuffles.
    random.Random(options.seed).shuffle(rows)  # noqa: S311 - an order is no secret
    texts = Texts(cache, options.text, rows, at_most=model.tokens)
    latents = Moments(cache, options.dtype)
    files = []
    for number, row in enumerate(rows):
        files.append(File(f"{FOLDER}/latent-{number}.pt", partial(_latent_file, latents, row)))
        make = partial(_condition_file, cache, texts, row)
        files.append(File(f"{FOLDER}/condition-{number}.pt", make))
    notes = [*([model.note] if model.note else []), *texts.notes]
    return Export(files=files, stanza=partial(_stanza, len(rows)), notes=notes)


class Moments:
    """Stored moments [2C, t, h, w] of clips, raw."""

    def __init__(self, cache: Cache, dtype: str | None) -> None:
        self.spec = cache.spec
        self._cache, self._dtype = cache, dtype or cache.spec.dtype

    def __call__(self, row: ClipRow) -> torch.Tensor:
        """Return a clip's moments."""
        return converted(self._cache.stored(row.number), self._dtype, row.key)


def latent_dict(moments: torch.Tensor, spec: LatentSpec) -> dict[str, torch.Tensor | int]:
    """Return what its loss reads of moments [2C, t, h, w]."""
    model = _MODELS[spec.model_class]
    if model.frames_first:
        return {"latents": moments.transpose(0, 1).unsqueeze(0).contiguous()}
    _, t, h, w = moments.shape
    sizes = {"num_frames": t, "height": h, "width": w} if model.sizes else {}
    return {"latents": moments.unsqueeze(0), **sizes, **_statistics(spec)}


def _statistics(spec: LatentSpec) -> dict[str, torch.Tensor]:
    """Return the statistics [C] of a model's latents that are in its files.

    Wan's latents_std holds 1 / std: the name misleads, and its loss multiplies by it. LTX's loss divides.
    """
    kind = _MODELS[spec.model_class].statistics
    if kind is None:
        return {}
    shift, scale = _per_channel(spec.normaliser, spec.channels)
    return {"latents_mean": shift, "latents_std": scale if kind == "1/std" else 1 / scale}


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
    """Return a clip's condition: states [1, L, D], zeros behind the text, and a mask [1, L] of some."""
    model = _MODELS[cache.spec.model_class]
    states = texts.padded(row, model.tokens)
    found = {"encoder_hidden_states": states.unsqueeze(0)}
    if model.mask:
        mask = torch.zeros(1, model.tokens, dtype=torch.bool)
        mask[:, : len(texts.unpadded(row))] = True
        found[model.mask] = mask
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
    if spec.model_class not in {*_MODELS, _HUNYUAN}:
        raise ConfigError(
            f"finetrainers' files of {spec.model_class} are not known; nothing was imported"
        )
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
    model = _MODELS.get(spec.model_class, _PLAIN)
    wanted = _statistics(spec) if model.statistics else {}
    if wanted.keys() <= found.keys() and not all(_is_same(found[n], w) for n, w in wanted.items()):
        raise refuse(storage, path, f"has other means and scales than {spec.model_class} of --like")
    return whole.transpose(0, 1) if model.frames_first else whole


def _is_same(given: Any, wanted: torch.Tensor) -> bool:
    """Tell whether numbers of a file are those of the encoder, as far as 16 bits hold them."""
    return (
        is_plain(given)
        and given.numel() == wanted.numel()
        and torch.allclose(given.float().flatten(), wanted, rtol=1e-2, atol=1e-2)
    )
