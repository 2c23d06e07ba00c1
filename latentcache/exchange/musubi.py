"""musubi-tuner (30c658c): one safetensors file per clip, and one of text per source, in a flat folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.core.units import plural
from latentcache.errors import ConfigError
from latentcache.exchange.clips import (
    ClipRow,
    Latents,
    clip_rows,
    expect_class,
    expect_stored,
    named,
    refuse_twice,
    source_of,
    stem_of,
)
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import Entry, names_in, read_header, read_tensor
from latentcache.exchange.quoting import quoted
from latentcache.exchange.records import Found, Record, bucket_from, told_apart
from latentcache.exchange.texts import Texts
from latentcache.format.safetensors import safetensors_bytes
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage, redact
from latentcache.storage.urls import is_url

VERSION = "1.0.1"
#: What a pattern of Python's `glob` does not take as it is.
GLOB = "*?["
#: Sizes of its buckets are multiples of this.
STEP = 16
_NAME = re.compile(r"(.+)_(\d{5,})-(\d{3,})_(\d{4,})x(\d{4,})_([a-z0-9]+)\.safetensors", re.DOTALL)
#: Of an image data set: the size is that of the picture, before it was resized.
_IMAGE = re.compile(r"(.+)_\d{4,}x\d{4,}_([a-z0-9]+)\.safetensors", re.DOTALL)
_KEY = re.compile(r"latents_(\d+x\d+x\d+)_(bfloat16|float16|float32)")
_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What musubi calls a model, and what it makes of its latents. short: in file names."""

    name: str
    short: str
    normalised: bool
    posterior: str


_ARCHITECTURES = {
    "AutoencoderKLWan": Architecture(name="wan", short="wan", normalised=True, posterior="mean"),
    "AutoencoderKLHunyuanVideo": Architecture(
        name="hunyuan_video", short="hv", normalised=False, posterior="sample"
    ),
}


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as musubi's `cache_directory`. Raises ConfigError where that cannot be right."""
    expect_class(cache, "musubi-tuner", _ARCHITECTURES)
    of = _ARCHITECTURES[cache.spec.model_class]
    expect_stored(cache, "musubi-tuner", "mean" if of.posterior == "mean" else "sample")
    dtype = options.dtype or "bfloat16"
    if dtype not in _DTYPES:
        raise ConfigError(f"--dtype {dtype}: musubi-tuner reads {', '.join(_DTYPES)}")
    rows = clip_rows(cache, options.bucket)
    _check_stems(rows)
    resolution = choose_resolution({(row.width, row.height) for row in rows})
    latents = Latents(
        cache,
        posterior="mode" if of.posterior == "mean" else "sample",
        normalise=of.normalised,
        dtype=dtype,
        seed=options.seed,
    )
    files = [
        File(latent_name(row, of.short), partial(_latent_file, latents, row, of)) for row in rows
    ]
    notes: list[str] = []
    if options.text is None:
        notes.append(
            "text is left to musubi's own script, whose files it needs beside these: without them it skips "
            "every clip"
        )
    else:
        texts = _texts(cache, options.text, rows, of)
        files += _text_files(texts, rows, of, dtype)
        notes += texts.notes
    frames = sorted({row.frames for row in rows})
    stanza = partial(_stanza, resolution, frames)
    return Export(files=files, stanza=stanza, expect_place=_expect_place, notes=notes)


def _expect_place(url: str) -> None:
    """Raise ConfigError for a folder in which its `glob` of `cache_directory` finds other files."""
    if not is_url(url) and any(sign in url for sign in GLOB):
        raise ConfigError(
            f"{url}: musubi takes its cache_directory for a pattern, in which {' '.join(GLOB)} stand for "
            "other characters, so it would find other files or none. Nothing was written. Export to a "
            "folder whose path has none of them."
        )


def latent_name(row: ClipRow, short: str) -> str:
    """Return the name of a clip's file: stem, first frame, frames, width and height."""
    size = f"{row.width:04d}x{row.height:04d}"
    return f"{row.stem}_{row.start:05d}-{row.frames:03d}_{size}_{short}.safetensors"


def _latent_file(latents: Latents, row: ClipRow, of: Architecture) -> bytes:
    tensor = latents(row)
    size = "x".join(map(str, tensor.shape[1:]))
    key = f"latents_{size}_{str(tensor.dtype).removeprefix('torch.')}"
    metadata = {
        "architecture": of.name,
        "width": f"{row.width}",
        "height": f"{row.height}",
        "frame_count": f"{row.frames}",
        "format_version": VERSION,
    }
    return safetensors_bytes({key: tensor}, metadata)


def _check_stems(rows: Sequence[ClipRow]) -> None:
    """Raise ConfigError for two sources of one stem: the folder is flat, and text goes by the stem."""
    sources: dict[str, str] = {}
    twice = [row for row in rows if sources.setdefault(row.stem, row.source) != row.source]
    if twice:
        names = [name for row in twice for name in (sources[row.stem], row.source)]
        raise ConfigError(
            f"sources have one file name in several folders: {named(names)}. musubi's folder is flat, so "
            "their files would replace each other. Nothing was written. Rename them, or give the corpus a "
            "key column."
        )
    clips = [(row.stem, row.start, row.frames, row.width, row.height) for row in rows]
    refuse_twice(rows, clips, "musubi names clips by stem, first frame, frames and size.")


def _texts(cache: Cache, name: str, rows: Sequence[ClipRow], of: Architecture) -> Texts:
    if of.short != "wan":
        raise ConfigError(
            f"--text: musubi reads two text encoders and a mask for {of.name}, which no one field holds. "
            "Nothing was written. Leave --text out, and run musubi's own text script."
        )
    return Texts(cache, name, rows)


def _text_files(
    texts: Texts, rows: Sequence[ClipRow], of: Architecture, dtype: str
) -> Iterator[File]:
    first: dict[str, ClipRow] = {}
    firsts = [first.setdefault(row.stem, row) for row in rows]
    pairs = zip(rows, firsts, strict=True)
    differ = [row.key for row, other in pairs if texts.text(row) != texts.text(other)]
    if differ:
        raise ConfigError(
            f"{plural(len(differ), 'clip')} with another text in the field {texts.name} than the first one "
            f"of the same source: {named(differ)}. musubi has one text per source. Nothing was written. "
            "Leave --text out, or export a cache with one text per source."
        )
    for stem, row in first.items():
        make = partial(_text_file, texts, row, of, dtype)
        yield File(f"{stem}_{of.short}_te.safetensors", make)


def _text_file(texts: Texts, row: ClipRow, of: Architecture, dtype: str) -> bytes:
    states = texts.unpadded(row, dtype)
    metadata = {
        "architecture": of.name,
        "caption1": texts.text(row),
        "format_version": VERSION,
    }
    return safetensors_bytes({f"varlen_t5_{dtype}": states}, metadata)


def bucket_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the (width, height) that musubi knows for a `resolution`: its area, in steps of 16."""
    area = width * height
    root = math.isqrt(area)
    sizes = set()
    for side in range(root // 2 // STEP * STEP, root + STEP, STEP):
        if side:
            other = area // side // STEP * STEP
            sizes |= {(side, other), (other, side)}
    return sorted(size for size in sizes if min(size) > 0)


def bucket_of(size: tuple[int, int], known: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the bucket that musubi puts a (width, height) into: that of the nearest width / height."""
    ratio = size[0] / size[1]
    return min(known, key=lambda other: abs(other[0] / other[1] - ratio))


def choose_resolution(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """Return a `resolution` with which every (width, height) has a bucket of its own.

    Raises ConfigError, naming sizes that would share one: torch.stack would fail in the middle of an epoch.
    """
    clash: list[tuple[int, int]] = []
    for candidate in sorted(sizes, key=lambda size: (-size[0] * size[1], size)):
        known = bucket_sizes(*candidate)
        if len(sizes) == 1 or (known and not (clash := _clash(sizes, known))):
            return candidate
    shown = " and ".join(f"{w}x{h}" for w, h in clash[:2])
    raise ConfigError(
        f"musubi would put clips of {shown} (width x height) into one bucket, and fail to stack them. "
        "Nothing was written. Export one bucket with --bucket; or make a cache of musubi's own sizes: "
        "clips.buckets with its aspect ratios, the area of its resolution, and multiples of 16."
    )


def _clash(sizes: set[tuple[int, int]], known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    taken: dict[tuple[int, int], tuple[int, int]] = {}
    for size in sorted(sizes):
        bucket = bucket_of(size, known)
        if bucket in taken:
            return [taken[bucket], size]
        taken[bucket] = size
    return []


def _stanza(resolution: tuple[int, int], frames: Sequence[int], url: str) -> str:
    return (
        "# musubi-tuner, dataset TOML\n"
        "[general]\n"
        f"resolution = [{resolution[0]}, {resolution[1]}]\n"
        'caption_extension = ".txt"\n'
        "batch_size = 1\n"
        "enable_bucket = true\n"
        "bucket_no_upscale = false\n\n"
        "[[datasets]]\n"
        f"video_directory = {quoted(url)}  # only listed\n"
        f"cache_directory = {quoted(url)}\n"
        f"target_frames = [{', '.join(map(str, frames))}]\n"
        'frame_extraction = "head"\n'
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the clips of a `cache_directory`. Raises ConfigError, CorpusError naming a file."""
    of = _ARCHITECTURES.get(spec.model_class)
    if of is None:
        raise ConfigError(
            f"musubi's files of {spec.model_class} are not known; nothing was imported"
        )
    texts: dict[str, tuple[str, str]] = {}
    records, others = [], []
    for name in names_in(storage, "", ".safetensors"):
        if name.endswith(f"_{of.short}_te.safetensors"):
            stem = name.removesuffix(f"_{of.short}_te.safetensors")
            texts[stem] = (read_header(storage, name).metadata.get("caption1", ""), name)
        elif match := _NAME.fullmatch(name) or _IMAGE.fullmatch(name):
            stem, *place, short = match.groups()
            if (
                short != of.short
            ):  # musubi takes files by this, so one folder may serve several models
                others.append(name)
                continue
            entry, dtype = _latent_entry(storage, name)
            if place:
                start, frames, width, height = map(int, place)
                bucket = Bucket(frames=frames, height=height, width=width)
            else:
                start, bucket = 0, bucket_from(storage, name, spec, entry.shape)
            records.append(
                Record(
                    key=f"{stem}#{start}",
                    source=source_of(stem),
                    path=name,
                    bucket=bucket,
                    start=start,
                    shape=entry.shape,
                    dtype=dtype,
                    load=partial(read_tensor, storage, name, entry),
                )
            )
    if others and not records:
        raise ConfigError(
            f"{redact(storage.url)}: no file is of {spec.model_class}, whose names end with "
            f"_{of.short}.safetensors, and {len(others)} are of other models: {named(others)}. Nothing was "
            "imported. Name the encoder that made them with --like."
        )
    return Found(
        layout="musubi",
        notes=_notes(others, spec),
        stored="mean" if of.posterior == "mean" else "sample",
        normalised=of.normalised,
        records=[
            record.with_caption(*found) if (found := texts.get(stem_of(record.source))) else record
            for record in told_apart(records, _key_with_frames)
        ],
    )


def _notes(others: Sequence[str], spec: LatentSpec) -> tuple[str, ...]:
    """Return what an import says of files of other models than its own."""
    if not others:
        return ()
    return (
        f"{plural(len(others), 'file')} of other models than {spec.model_class} left out: "
        f"{named(others)}",
    )


def _key_with_frames(record: Record) -> str:
    return f"{stem_of(record.source)}#{record.start}-{record.bucket.frames}"


def _latent_entry(storage: Storage, name: str) -> tuple[Entry, str]:
    tensors = read_header(storage, name).tensors
    keys = {key: match for key in tensors if (match := _KEY.fullmatch(key))}
    if len(keys) != 1 or len(tensors) != 1:
        what = "an image-to-video file" if "latents_image" in "".join(tensors) else "not one latent"
        raise refuse(storage, name, f"holds {what}: its tensors are {named(tensors)}")
    ((key, match),) = keys.items()
    entry = tensors[key]
    if "x".join(map(str, entry.shape[1:])) != match[1] or len(entry.shape) != 4:
        raise refuse(storage, name, f"has a tensor {key} of the shape {list(entry.shape)}")
    if entry.dtype != match[2]:
        raise refuse(storage, name, f"has a tensor {key} of {entry.dtype}")
    return entry, entry.dtype
