"""CogVideo's finetuning (7a1af71): scaled samples and prompt embeddings as it caches them itself."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from functools import partial

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.exchange.clips import (
    ClipRow,
    Latents,
    clip_rows,
    expect_class,
    expect_stored,
    named,
    one_bucket,
    refuse_twice,
    source_of,
)
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import files_in, read_header, read_tensor
from latentcache.exchange.records import Found, Record, bucket_from, told_apart
from latentcache.exchange.texts import Texts
from latentcache.format.columns import CAPTION
from latentcache.format.safetensors import safetensors_bytes
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage

LATENTS, PROMPTS = "cache/video_latent", "cache/prompt_embeddings"
VIDEO, PROMPT = "encoded_video", "prompt_embedding"
MODEL = "cogvideox-t2v"
_CLASSES = ("AutoencoderKLCogVideoX",)


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as what is below a `data_root`. Raises ConfigError where that cannot be right."""
    expect_class(cache, "CogVideo", _CLASSES)
    expect_stored(cache, "CogVideo", "sample")
    model = options.model or MODEL
    if "/" in model or model in ("", ".", ".."):
        raise ConfigError(
            f"--model {model}: it names a folder, such as {MODEL} or cogvideox1.5-t2v"
        )
    rows = clip_rows(cache, options.bucket)
    bucket = one_bucket(rows, "CogVideo trains on one train_resolution")
    refuse_twice(rows, [row.stem for row in rows], "CogVideo takes one clip of a source's stem.")
    dtype = options.dtype or "bfloat16"
    latents = Latents(cache, posterior="sample", normalise=True, dtype=dtype, seed=options.seed)
    folder = f"{LATENTS}/{model}/{bucket.name}"
    files = [
        File(f"{folder}/{row.stem}.safetensors", partial(_latents, latents, row)) for row in rows
    ]
    notes = [f"its videos.txt and prompts.txt name the sources, whose stems are those in {folder}"]
    if options.text is not None:
        texts = Texts(cache, options.text, rows)
        files += [
            File(prompt_path(prompt), partial(_prompt, texts, row, dtype))
            for prompt, row in _prompts(texts, rows).items()
        ]
        notes += texts.notes
        if texts.columns != [CAPTION]:
            notes.append(
                f"the lines of its prompts.txt must be the texts of the field {texts.name}, of the column "
                f"{', '.join(texts.columns)}: it finds their states by these"
            )
    else:
        notes.append("text is left to CogVideo, which encodes the prompts that it does not find")
    return Export(files=files, stanza=partial(_stanza, model, bucket.name), notes=notes)


def prompt_path(prompt: str) -> str:
    """Return the file of a prompt's states."""
    return f"{PROMPTS}/{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"


def _prompts(texts: Texts, rows: Sequence[ClipRow]) -> dict[str, ClipRow]:
    """Return a clip of each prompt; where texts differ by blanks around it, one of just that text."""
    found: dict[str, ClipRow] = {}
    for row in rows:
        prompt = _prompt_of(texts, row)
        if texts.text(found.setdefault(prompt, row)) != prompt:
            found[prompt] = row
    return found


def _prompt_of(texts: Texts, row: ClipRow) -> str:
    """Return a clip's text as a line of prompts.txt gives it. Raises ConfigError where none can."""
    prompt = texts.text(row).strip()
    if not prompt or any(end in prompt for end in "\r\n"):
        what = "has several lines" if prompt else "is empty"
        raise ConfigError(
            f"the text of {named([row.key])} {what}, and CogVideo takes one line of prompts.txt "
            "per clip, none of them empty. Nothing was written. Correct the texts and run latentcache "
            "precompute, or leave --text out and write prompts.txt yourself."
        )
    return prompt


def _latents(latents: Latents, row: ClipRow) -> bytes:
    return safetensors_bytes({VIDEO: latents(row)}, {})


def _prompt(texts: Texts, row: ClipRow, dtype: str) -> bytes:
    states: torch.Tensor = texts.stored(row, dtype)
    return safetensors_bytes({PROMPT: states}, {})


def _stanza(model: str, resolution: str, url: str) -> str:
    return (
        "# CogVideo finetune, arguments\n"
        f"--data_root {shlex.quote(url)} --model_name {shlex.quote(model)} \\\n"
        f"--train_resolution {resolution} \\\n"
        "--video_column videos.txt --caption_column prompts.txt"
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the clips below a `data_root`. Raises ConfigError, CorpusError naming a file."""
    if spec.model_class not in _CLASSES:
        raise ConfigError(f"CogVideo has no files of {spec.model_class}; nothing was imported")
    paths = files_in(storage, LATENTS, ".safetensors")
    records = told_apart([_record(storage, spec, path) for path in paths])
    return Found(layout="cogvideo", stored="sample", normalised=True, records=records)


def _record(storage: Storage, spec: LatentSpec, path: str) -> Record:
    tensors = read_header(storage, path).tensors
    entry = tensors.get(VIDEO)
    if entry is None or len(entry.shape) != 4:
        raise refuse(storage, path, f"has no tensor {VIDEO} [C, t, h, w]")
    stem = path.rsplit("/", 1)[-1].removesuffix(".safetensors")
    return Record(
        key=f"{stem}#0",
        source=source_of(stem),
        path=path,
        bucket=bucket_from(storage, path, spec, entry.shape),
        shape=entry.shape,
        dtype=entry.dtype,
        load=partial(read_tensor, storage, path, entry),
    )
