"""Data set files of SimpleTuner bc8e6ab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentcache.config.trainers.records import (
    GIVE,
    NO_EQUAL,
    SHARES,
    Converted,
    Plain,
    is_list_of_sections,
    others,
    preset,
    starts_here,
    text,
    weighted,
)
from latentcache.errors import ConfigError


def from_simpletuner(data: Any, of_file: list[str]) -> Iterator[Converted]:
    """Yield the data sets of a file; those that are left out are added to `of_file`."""
    if data and not is_list_of_sections(data):
        raise ConfigError(f"it is no list of sections. {GIVE}")
    for number, given in enumerate(data, 1):
        if why_not := _left_out(given):
            of_file.append(f"data set {number}, {given.get('id')!r}: {why_not}")
        else:
            yield _of_simpletuner(given)


def _left_out(given: Plain) -> str | None:
    """Return why a data set of SimpleTuner is not taken; None if it is."""
    kind, place = given.get("dataset_type", "image"), given.get("type", "local")
    if given.get("disabled") or given.get("disable"):
        return "it is disabled"
    if kind not in ("image", "video"):
        return f"it is of {kind}"
    if place not in ("local", "aws"):
        return f"it is read from {place}; make a folder or a table of it"
    return None


def _of_simpletuner(given: Plain) -> Converted:
    source, used, lost = _source(given)
    clips = preset("simpletuner", {k: v for k, v in given.items() if k not in _ELSEWHERE})
    clips["num_frames"], of_video = _frames(given)
    lost += of_video
    if given.get("resolution_type", "pixel_area") == "pixel":
        clips["resolution_type"] = "pixel_area"
        lost.append(
            "resolution_type: pixel (of the shorter side) is taken for pixel_area, so sizes differ"
        )
    if given.get("crop"):
        lost.append("crop: is taken for false; the sizes that crop_aspect would give differ")
    if (strategy := given.get("caption_strategy", "textfile")) != "textfile":
        lost.append(f"caption_strategy: {strategy}; only .txt files are read")
    elif not given.get("disable_multiline_split"):
        lost.append(
            "caption_strategy: there each line of a text file is a caption; here the whole file is one. "
            "Several captions per source come from a table"
        )
    lost += [f"{key}: {why}" for key, why in _ELSEWHERE.items()]
    if (backend := given.get("metadata_backend", "discovery")) not in ("discovery", "json"):
        lost.append(
            f"metadata_backend: files without a row in its table ({backend}) are left out there and taken "
            "here; name the table as corpus.source, with columns"
        )
    used |= {*clips, *_ELSEWHERE, *_FOLLOWED} - {"num_frames"}
    lost += others(given, used, _WHY)
    corpus = weighted({"source": source}, _times(given))
    return Converted(corpus=corpus, clips=clips, lost=tuple(lost))


def _source(given: Plain) -> tuple[str, set[str], list[str]]:
    """Return the place of a data set, the keys that name it, and what is said of it."""
    if given.get("type", "local") == "local":
        # The second is the name that it had once.
        key = next((k for k in _DATA_DIRS if given.get(k)), _DATA_DIRS[0])
        source = text(given, key)
        lost = starts_here(key, source)
    else:
        key = "aws_bucket_name"
        prefix = given.get("aws_data_prefix") or ""
        source = f"s3://{text(given, key)}/{prefix}"
        lost = []
    if given.get("dataset_type") == "video":
        lost.append(
            f"{key}: images among the videos are taken, too, as SimpleTuner lists them; each is a clip of "
            "one frame"
        )
    else:
        lost.append(
            f"{key}: of videos among the images the first frame is taken; SimpleTuner takes more"
        )
    return source, {key, "aws_data_prefix"} if key == "aws_bucket_name" else {key}, lost


def _frames(given: Plain) -> tuple[Any, list[str]]:
    """Return the frames of a clip, and what is lost of the section `video`."""
    video = given.get("video", {})
    if given.get("dataset_type") != "video":
        return 1, [f"video.{key}: the data set is of images" for key in video]
    lost = []
    if "num_frames" not in video:
        lost.append(
            f"video.num_frames: is 5 s at the rate of the training there, and {_FRAMES} frames here"
        )
    frames = video.get("num_frames", _FRAMES)
    followed = {"num_frames"}
    if video.get("min_frames") == frames:  # shorter videos are rejected here, too
        followed.add("min_frames")
    why = dict.fromkeys(("min_frames", "max_frames"), _TAKEN)
    return frames, [
        f"video.{key}: {why.get(key, NO_EQUAL)}" for key in video if key not in followed
    ]


def _times(given: Plain) -> int:
    """Return how often a clip comes per epoch: SimpleTuner counts only further times, and whole ones."""
    times = given.get("repeats", 0)
    if isinstance(times, bool) or not isinstance(times, int | float):
        raise ConfigError(f"'repeats' should be a number, and is {times!r}")
    return int(times) + 1


_DATA_DIRS = ("instance_data_dir", "instance_data_root")
#: At 25 frames per second.
_FRAMES = 125
_TAKEN = "videos that it leaves out there are taken here; leave them out in a table of your own"
#: Keys of the preset that SimpleTuner does not read from this file, and where they come from.
_ELSEWHERE = {
    "aspect_bucket_alignment": "is among the options of the training; 64 is taken. Set yours in clips",
}
_FOLLOWED = (
    "metadata_backend",
    *("video", "type", "dataset_type", "repeats", "crop", "caption_strategy"),
    *("disabled", "disable", "disable_multiline_split"),
)
_WHY = {
    "id": "is a name for SimpleTuner only",
    "probability": SHARES,
    "cache_dir_vae": "is SimpleTuner's cache; set cache.url",
    "crop_style": "is taken for center",
    "num_frames": "SimpleTuner reads video.num_frames",
    **dict.fromkeys(
        ("aws_region_name", "aws_endpoint_url", "aws_access_key_id", "aws_secret_access_key"),
        "set corpus.storage_options",
    ),
    **dict.fromkeys(
        ("minimum_image_size", "minimum_aspect_ratio", "maximum_aspect_ratio", "max_num_samples"),
        "sources that it leaves out there are taken here; leave them out in a table of your own",
    ),
}
