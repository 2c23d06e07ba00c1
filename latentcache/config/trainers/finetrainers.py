"""Data set files of finetrainers f476c37."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from latentcache.config.trainers.records import (
    Converted,
    Plain,
    Reads,
    flat,
    names_in,
    others,
    preset,
    sections,
    starts_here,
    text,
)
from latentcache.errors import ConfigError

_SUFFIXES = {"video": ("mp4", "mov"), "image": ("jpg", "jpeg", "png")}
_ALL_SUFFIXES = (*_SUFFIXES["video"], *_SUFFIXES["image"])
_TABLES = ("metadata.csv", "metadata.jsonl")
#: Two of these beside each other, one of media and one of captions, are the data set.
_LISTS = {"video": ("video.txt", "videos.txt"), "image": ("image.txt", "images.txt")}
_WHY = {
    "id_token": "is not put before captions; write it into them",
    "remove_common_llm_caption_prefixes": "captions are kept as they are",
    "caption_options": "captions are kept as they are",
}


def from_finetrainers(data: Any, of_file: list[str]) -> Iterator[Converted]:
    """Yield the data sets of a file, for each number of frames whose sizes differ one."""
    for given in sections(data, "datasets", of_file):
        yield from _converted(given)


def _converted(given: Plain) -> Iterator[Converted]:
    keys = [key for key in ("data_root", "dataset_file") if given.get(key) is not None]
    if len(keys) > 1:
        raise ConfigError("it has 'data_root' and 'dataset_file', and one of them is read")
    key, kind = (keys or ["data_root"])[0], given.get("dataset_type", "video")
    if kind not in ("image", "video"):
        raise ConfigError(f"'dataset_type' is {kind!r}, and finetrainers has image and video")
    lost = starts_here(key, text(given, key))
    corpus, reads = _source(given, key, kind, lost)
    clips = preset("finetrainers", given)
    if given.get("reshape_mode") == "center_crop":
        clips["reshape_mode"] = "resize_crop"
        lost.append(
            "reshape_mode: center_crop, which does not resize, is taken for resize_crop, so latents differ"
        )
    buckets = f"{kind}_resolution_buckets"
    used = {"reshape_mode", key, "dataset_type", buckets}
    if "columns" in corpus:
        used.add("rename_columns")
    other = "video" if kind == "image" else "image"
    why = {**_WHY, f"{other}_resolution_buckets": f"the data set is of {kind}s"}
    lost += others(given, used, why)
    parts = _by_frames(_sizes(given[buckets], kind))
    if len(parts) > 1:
        lost.append(
            f"{buckets}: sizes differ by the number of frames, so each number is a configuration of its "
            "own, with all of the videos; finetrainers takes each video once, in the nearest bucket"
        )
    for part in parts:
        of_part = {**clips, "video_resolution_buckets": part}
        yield Converted(corpus=corpus, clips=of_part, lost=tuple(lost), reads=reads)


def _source(
    given: Plain, key: str, kind: str, lost: list[str]
) -> tuple[dict[str, Any], Reads | None]:
    """Return the section `corpus` of what finetrainers finds at a place, and what it takes of a folder.

    In the order in which it looks: a table, tar or Parquet files, pairs of files, lists. A folder that is
    not here is taken for one of pairs.
    """
    root = text(given, key)
    names = names_in(root)
    if names is None and re.fullmatch(r"[\w.-]+/[\w.-]+", root):
        lost.append(
            f"{key}: if that is a data set of the hub, download it, and set corpus.source to its folder"
        )
        return {"source": root}, None
    if names is None and posixpath.splitext(root)[1]:
        return {"source": root}, None
    if table := next((name for name in _TABLES if name in (names or ())), None):
        columns = {kind: "file_name", "caption": _caption_column(given)}
        return {"source": posixpath.join(root, table), "columns": columns}, None
    if names is not None and (why := _why_whole(root, names, kind)):
        lost.append(f"{key}: {why}")
        return {"source": root}, None
    if names is None:
        lost.append(
            f"{key}: if {' or '.join(_TABLES)} is in it, name that as corpus.source, with columns; if tar "
            "or Parquet files are, name the folder itself"
        )
    suffixes = _SUFFIXES[kind]
    reads = Reads(
        trainer="finetrainers",
        key=key,
        folder=root,
        kind="image" if kind == "image" else "video",
        suffixes=suffixes,
        caption=".txt",
    )
    return {"source": flat(root)}, reads


def _why_whole(root: str, names: Sequence[str], kind: str) -> str | None:
    """Say why the whole of a folder is the source, and what differs; None if pairs of files are."""
    if any(name.endswith((".tar", ".parquet")) for _, _, found in os.walk(root) for name in found):
        return (
            "its tar or Parquet files are read there; here only where no video or image lies in it"
        )
    media = {name for name in names if name.endswith(tuple(map(".{}".format, _ALL_SUFFIXES)))}
    texts = {name[:-4] for name in names if name.endswith(".txt")}
    has_pairs = any(posixpath.splitext(name)[0] in texts for name in media)
    if not has_pairs and any(name in names for name in _LISTS[kind]):
        return (
            f"lists of {kind}s and captions are not read. Make a table of both, and name it as "
            "corpus.source; now the whole folder is taken, without captions"
        )
    return None


def _caption_column(given: Plain) -> str:
    """Return the column that is called `caption` once finetrainers has renamed its columns."""
    renamed = given.get("rename_columns") or {}
    return next((old for old, new in renamed.items() if new == "caption"), "caption")


def _by_frames(buckets: Sequence[str]) -> list[list[str]]:
    """Return buckets, such as "49x480x720", in one part, or by number of frames if sizes differ by it."""
    parts: dict[str, list[str]] = {}
    for bucket in buckets:
        parts.setdefault(bucket.partition("x")[0], []).append(bucket)
    sizes = [[bucket.partition("x")[2] for bucket in part] for part in parts.values()]
    return [list(buckets)] if sizes[1:] == sizes[:-1] else list(parts.values())


def _sizes(buckets: Sequence[Any], kind: str) -> list[str]:
    """Return buckets as "49x480x720"; those of images have one frame."""
    if kind == "image":
        return [f"1x{height}x{width}" for height, width in map(_two, buckets)]
    return ["x".join(map(str, _parts(bucket))) for bucket in buckets]


def _parts(bucket: Any) -> list[Any]:
    return bucket.split("x") if isinstance(bucket, str) else list(bucket)


def _two(bucket: Any) -> tuple[Any, Any]:
    height, width = _parts(bucket)
    return height, width
