"""Data set files of diffusion-pipe 8f83dbf."""

from __future__ import annotations

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
    weighted,
)
from latentcache.errors import ConfigError

#: Keys of the preset that diffusion-pipe does not read from this file, and where they come from.
_ELSEWHERE = {
    "framerate": "is the model's; 16 is taken, as Wan 2.1 has it. Set yours in clips",
    "pixels_round_to_multiple": "is the model's; 16 is taken, as Wan 2.1 has it. Set yours in clips",
    "video_clip_mode": "is the training run's; single_beginning is taken. Set yours in clips",
}
#: Beside the media, what it takes all captions from.
_CAPTIONS = "captions.json"
_WHY = {
    "mask_path": "masks are not encoded",
    "control_path": "control media are not encoded",
    "caption_prefix": "captions are kept as they are",
    "shuffle_tags": "captions are kept as they are",
}


def from_diffusion_pipe(data: Any, of_file: list[str]) -> Iterator[Converted]:
    """Yield the data sets of a file; what belongs to none of them is added to `of_file`."""
    if isinstance(data, dict) and isinstance(data.get("dataset"), str):
        raise ConfigError(
            f"it is the file of a training run, whose data set file is {data['dataset']!r}; give that one"
        )
    directories = sections(data, "directory", of_file, *data)
    general = {key: value for key, value in data.items() if key != "directory"}
    for directory in directories:
        yield _converted({"frame_buckets": [1], **general, **directory})


def _converted(given: Plain) -> Converted:
    path = text(given, "path")
    _check_sizes(given)
    clips = preset("diffusion-pipe", {k: v for k, v in given.items() if k not in _ELSEWHERE})
    lost = [*starts_here("path", path), *(f"{key}: {why}" for key, why in _ELSEWHERE.items())]
    resolutions = list(given["resolutions"])
    lost += [
        f"resolutions: {resolution} needs a cache of its own, as each clip is encoded again"
        for resolution in resolutions[1:]
    ]
    clips["resolutions"] = resolutions[:1]
    is_of_images = not any(n > 1 for n in given["frame_buckets"])
    if is_of_images:
        clips |= {"frame_buckets": [5], "frames": 1}
    skips = given.get("skip_empty_caption", True)
    names = names_in(path) or ()
    lost += _of_folder(names)
    lost += others(given, {*clips, *_ELSEWHERE, "path", "num_repeats", "skip_empty_caption"}, _WHY)
    return Converted(
        corpus=weighted({"source": flat(path)}, given.get("num_repeats", 1)),
        clips=clips,
        lost=tuple(lost),
        reads=Reads(
            trainer="diffusion-pipe",
            key="path",
            folder=path,
            kind="image" if is_of_images else None,
            caption=".txt" if skips and _CAPTIONS not in names else None,
        ),
    )


def _check_sizes(given: Plain) -> None:
    if given.get("size_buckets") is not None:
        raise ConfigError(
            "size_buckets have no preset, and diffusion-pipe follows them and no resolutions. Remove them "
            "from a copy of it, or begin with `latentcache init` and write clips.buckets.sizes yourself"
        )
    if "resolutions" not in given:
        raise ConfigError("it has no 'resolutions'. Add them to a copy of it")


def _of_folder(names: Sequence[str]) -> list[str]:
    """Say what else diffusion-pipe reads in a folder. names: what is in it, nothing if it is not here."""
    lost = []
    if _CAPTIONS in names:
        lost.append(
            f"path: {_CAPTIONS} in it holds the captions there, and is not read here. Make a table of it; "
            "media without an entry are left out there, unless skip_empty_caption is false"
        )
    if any(name.endswith(".tar") for name in names):
        lost.append(
            "path: of tar files in it the members are taken there; here only where no video or image lies "
            "beside them"
        )
    return lost
