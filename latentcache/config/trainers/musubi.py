"""Data set files of musubi-tuner 30c658c."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentcache.config.trainers.records import (
    OF_TRAINING,
    Converted,
    Plain,
    Reads,
    flat,
    others,
    preset,
    sections,
    starts_here,
    text,
    weighted,
)
from latentcache.errors import ConfigError

#: What musubi-tuner reads a data set from, and what each of its rows or files is.
_PLACES = {
    "video_jsonl_file": "video",
    "video_directory": "video",
    "image_jsonl_file": "image",
    "image_directory": "image",
}
_IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "avif", "jxl")
_VIDEOS = ("mp4", "webm", "avi", "mkv", "mov", "flv", "wmv", "m4v", "mpg", "mpeg")
#: Of data sets of images. All else that the preset has is of videos.
_SIZE_KEYS = ("resolution", "enable_bucket", "bucket_no_upscale")
_WHY = {
    "batch_size": OF_TRAINING,
    "cache_directory": "is musubi-tuner's cache; set cache.url",
    "control_directory": "control videos are not encoded",
}


def from_musubi(data: Any, of_file: list[str]) -> Iterator[Converted]:
    """Yield the data sets of a file; what belongs to none of them is added to `of_file`."""
    datasets = sections(data, "datasets", of_file, "general")
    general = _set(data.get("general", {}))
    for number, dataset in enumerate(datasets, 1):
        given = {**general, **_set(dataset)}
        places = [key for key in _PLACES if key in given]
        if len(places) != 1:
            raise ConfigError(
                f"data set {number} names {' and '.join(places) or 'no place'}; one of "
                f"{', '.join(_PLACES)} is read"
            )
        yield _converted(given, places[0])


def _set(section: Plain) -> Plain:
    """Return what is set in a section: for musubi-tuner, null is what is not given."""
    return {key: value for key, value in section.items() if value is not None}


def _converted(given: Plain, key: str) -> Converted:
    place, kind, is_table = text(given, key), _PLACES[key], key.endswith("_file")
    lost = [*starts_here(key, place), *_captions(given.get("caption_extension"))]
    if is_table:
        columns = {kind: f"{kind}_path", "caption": "caption"}
        corpus: dict[str, Any] = {"source": place, "columns": columns}
        lost.append(
            f"{key}: relative paths in it start at its folder here, and where musubi-tuner is run there"
        )
    else:
        corpus = {"source": flat(place)}
    clips = _image_clips(given, lost) if kind == "image" else _video_clips(given, lost)
    used = {key, "caption_extension", "num_repeats", *(_SIZE_KEYS if kind == "image" else clips)}
    of_videos = dict.fromkeys(preset("musubi", given), "the data set is of images")
    lost += others(given, used, {**of_videos, **_WHY})
    return Converted(
        corpus=weighted(corpus, given.get("num_repeats", 1)),
        clips=clips,
        lost=tuple(lost),
        reads=None if is_table else _reads(given, key),
    )


def _reads(given: Plain, key: str) -> Reads:
    """Return what it takes of a folder. A video without a caption stops it; such an image is left out."""
    is_image = _PLACES[key] == "image"
    suffixes = _IMAGES if is_image else _VIDEOS
    extension = given.get("caption_extension") if is_image else None
    return Reads(
        trainer="musubi-tuner",
        key=key,
        folder=text(given, key),
        kind="image" if is_image else "video",
        suffixes=(*suffixes, *map(str.upper, suffixes)),
        caption=f".{str(extension).lstrip('.')}" if extension else None,
    )


def _video_clips(given: Plain, lost: list[str]) -> dict[str, Any]:
    if given.get("source_fps") is not None:
        lost.append("architecture: set it to that of your training, as it says the rate; wan is 16")
    return preset("musubi", given)


def _image_clips(given: Plain, lost: list[str]) -> dict[str, Any]:
    """Return the section `clips` of images: other than videos, they follow `enable_bucket`."""
    clips: dict[str, Any] = {"preset": "musubi", "target_frames": [1]}
    if not given.get("enable_bucket"):
        return {**clips, "buckets": {"sizes": [_one_size(given.get("resolution", [960, 544]))]}}
    if given.get("bucket_no_upscale"):
        lost.append(
            "bucket_no_upscale: images of no more pixels than `resolution` keep their size there, rounded "
            "down to multiples of 16; here they are enlarged, so their latents differ. Leave them out with "
            "clips.too_small: record, or enlarge them there, too"
        )
    return {**clips, **{key: given[key] for key in ("resolution", "enable_bucket") if key in given}}


def _one_size(resolution: Any) -> list[Any]:
    """Return the [height, width] of a `resolution`: one number, or width and height."""
    if not isinstance(resolution, list):
        return [resolution, resolution]
    width, height = resolution
    return [height, width]


def _captions(extension: Any) -> list[str]:
    if str(extension or "txt").lstrip(".") in ("txt", "caption"):
        return []
    return [
        f"caption_extension: captions are in {extension!r} files, and only .txt and .caption files beside "
        "the videos are read"
    ]
