"""Data set files of trainers as configurations, for `latentcache init --from`.

Whatever a file says is carried over, or named among what is lost.
"""

from __future__ import annotations

import dataclasses
import glob
import posixpath
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentcache.config.presets import PRESETS
from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.regular_files import read_regular
from latentcache.errors import ConfigError
from latentcache.storage.urls import is_url

Plain = Mapping[str, Any]

_GIVE = "Give the file that the trainer itself reads"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One of a trainer's data sets. corpus, clips: our sections. lost: what they do not carry, in words."""

    corpus: dict[str, Any]
    clips: dict[str, Any]
    lost: tuple[str, ...]


def convert(trainer: str, path: str) -> list[Converted]:
    """Return the data sets of a trainer's file. Raises ConfigError."""
    data = _read(trainer, path)
    of_file: list[str] = []
    try:
        found = list(TRAINERS[trainer](data, of_file))
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be taken over: {error}.") from None
    except OTHER_SHAPE as error:
        raise ConfigError(
            f"{path} is no data set file of {trainer}: {type(error).__name__} at {error}. {_GIVE}."
        ) from None
    if not found:
        why = "".join(f" Left out: {line}." for line in of_file)
        raise ConfigError(
            f"{path} has no data set of videos or images that could be taken over.{why}"
        )
    return [dataclasses.replace(one, lost=(*of_file, *one.lost)) for one in found]


def _read(trainer: str, path: str) -> Any:
    is_json = trainer in JSON or path.lower().endswith(".json")
    try:
        text = read_regular(path, "utf-8-sig")
        return parse_json(text) if is_json else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path!r}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not {'JSON' if is_json else 'TOML'}: {error}") from None


def _sections(data: Any, name: str, of_file: list[str], *known: str) -> list[Plain]:
    """Return the data sets of a file, its list `name`; what else it holds is lost. Raises ConfigError."""
    found: Any = data.get(name) if isinstance(data, dict) else None
    if not _is_list_of_sections(found):
        raise ConfigError(f"it has no list {name!r} of sections. {_GIVE}")
    of_file += [f"{key}: {_NO_EQUAL}" for key in data if key not in (name, *known)]
    return list(found)


def _is_list_of_sections(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(one, dict) for one in found)


def _text(given: Plain, key: str) -> str:
    """Return what must be some text. Raises ConfigError."""
    value = given.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key!r} should be the text of a place, and is {value!r}")
    return value


def _flat(folder: str) -> str:
    """Return a glob of the files directly in a folder, which is all that a trainer reads of it."""
    return f"{glob.escape(folder).rstrip('/')}/*"


def _starts_here(key: str, place: str) -> list[str]:
    if posixpath.isabs(place) or is_url(place) or re.match(r"[A-Za-z]:[/\\]", place):
        return []
    return [f"{key}: {place!r} starts where precompute is run, not where the trainer is"]


def _preset(name: str, given: Plain) -> dict[str, Any]:
    """Return a section `clips` of a preset, with those of its keys that are given."""
    known = PRESETS[name].model_fields
    return {"preset": name, **{key: value for key, value in given.items() if key in known}}


def _others(given: Plain, used: set[str], why: Mapping[str, str]) -> tuple[str, ...]:
    """Say of every key that is not used that it is lost. Values are not said: some are secrets."""
    return tuple(f"{key}: {why.get(key, _NO_EQUAL)}" for key in given if key not in used)


_NO_EQUAL = "has no equal here"
_OF_TRAINING = "belongs to training; the loader has its own"
#: Of data sets of images whose place may hold videos, too: each is a clip of one frame.
_FIRST_FRAMES = "only images are taken; of videos the first frame would be, too"
_SHARES = "is of training; give the loader `weights` where caches are mixed"


def _weighted(corpus: dict[str, Any], times: Any) -> dict[str, Any]:
    """Return a section `corpus` whose clips come so many times per epoch."""
    return corpus if times == 1 else {**corpus, "weight": times}


def _captions(extension: Any) -> list[str]:
    if str(extension or "txt").lstrip(".") in ("txt", "caption"):
        return []
    return [
        f"caption_extension: captions are in {extension!r} files, and only .txt and .caption files beside "
        "the videos are read"
    ]


#: What musubi-tuner reads a data set from, and what each of its rows or files is.
_PLACES = {
    "video_jsonl_file": "video",
    "video_directory": "video",
    "image_jsonl_file": "image",
    "image_directory": "image",
}


def _musubi(data: Any, of_file: list[str]) -> Iterator[Converted]:
    sections = _sections(data, "datasets", of_file, "general")
    general = data.get("general", {})
    for number, dataset in enumerate(sections, 1):
        given = {**general, **dataset}
        places = [key for key in _PLACES if given.get(key) is not None]
        if len(places) != 1:
            raise ConfigError(
                f"data set {number} names {' and '.join(places) or 'no place'}; one of "
                f"{', '.join(_PLACES)} is read"
            )
        (key,) = places
        place, role = _text(given, key), _PLACES[key]
        corpus: dict[str, Any] = {"source": _flat(place)}
        if key.endswith("_file"):
            columns = {role: f"{role}_path", "caption": "caption"}
            corpus = {"source": place, "columns": columns}
        clips = _preset("musubi", given)
        lost = [*_starts_here(key, place), *_captions(given.get("caption_extension"))]
        if role == "image":
            if "target_frames" in clips:
                lost.append("target_frames: the data set is of images")
            clips["target_frames"] = [1]
            lost += [] if key.endswith("_file") else [f"{key}: {_FIRST_FRAMES}"]
        elif clips.get("source_fps") is not None:
            lost.append(
                "architecture: set it to that of your training, as it says the rate; wan is 16"
            )
        used = {*clips, key, "caption_extension", "num_repeats"}
        why = {
            "batch_size": _OF_TRAINING,
            "cache_directory": "is musubi-tuner's cache; set cache.url",
            "control_directory": "control videos are not encoded",
        }
        corpus = _weighted(corpus, given.get("num_repeats", 1))
        yield Converted(corpus=corpus, clips=clips, lost=(*lost, *_others(given, used, why)))


def _finetrainers(data: Any, of_file: list[str]) -> Iterator[Converted]:
    for given in _sections(data, "datasets", of_file):
        root, kind = _text(given, "data_root"), given.get("dataset_type", "video")
        if kind not in ("image", "video"):
            raise ConfigError(f"'dataset_type' is {kind!r}, and finetrainers has image and video")
        lost = _starts_here("data_root", root)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", root) and not Path(root).exists():
            lost.append(
                "data_root: if that is a data set of the hub, download it, and set corpus.source to its "
                "folder"
            )
        elif not posixpath.splitext(root)[1]:
            lost.append(
                "metadata.csv or metadata.jsonl in data_root: name it as corpus.source, with columns"
            )
        buckets = f"{kind}_resolution_buckets"
        clips = _preset("finetrainers", given)
        if kind == "image":
            sizes = [f"1x{h}x{w}" for h, w in map(_two, given[buckets])]
            lost.append(f"dataset_type: {_FIRST_FRAMES}")
        else:
            sizes = ["x".join(map(str, _parts(b))) for b in given[buckets]]
        used = {"reshape_mode", "data_root", "dataset_type", buckets}
        if given.get("reshape_mode") == "center_crop":
            clips["reshape_mode"] = "resize_crop"
            lost.append(
                "reshape_mode: center_crop, which does not resize, is taken for resize_crop"
            )
        other = "video" if kind == "image" else "image"
        why = {
            f"{other}_resolution_buckets": f"the data set is of {kind}s",
            "id_token": "is not put before captions; write it into them",
            "remove_common_llm_caption_prefixes": "captions are kept as they are",
            "caption_options": "captions are kept as they are",
        }
        lost += _others(given, used, why)
        parts = _by_frames(sizes)
        if len(parts) > 1:
            lost.append(
                f"{buckets}: sizes differ by the number of frames, so each number is a configuration of "
                "its own, with all of the videos; finetrainers takes each video once, in the nearest bucket"
            )
        for part in parts:
            of_part = {**clips, "video_resolution_buckets": part}
            yield Converted(corpus={"source": root}, clips=of_part, lost=tuple(lost))


def _by_frames(buckets: Sequence[str]) -> list[list[str]]:
    """Return buckets, such as "49x480x720", in one part, or by number of frames if sizes differ by it."""
    parts: dict[str, list[str]] = {}
    for bucket in buckets:
        parts.setdefault(bucket.partition("x")[0], []).append(bucket)
    sizes = [[bucket.partition("x")[2] for bucket in part] for part in parts.values()]
    return [list(buckets)] if sizes[1:] == sizes[:-1] else list(parts.values())


def _parts(bucket: Any) -> list[Any]:
    return bucket.split("x") if isinstance(bucket, str) else list(bucket)


def _two(bucket: Any) -> tuple[Any, Any]:
    height, width = _parts(bucket)
    return height, width


def _diffusion_pipe(data: Any, of_file: list[str]) -> Iterator[Converted]:
    if isinstance(data, dict) and isinstance(data.get("dataset"), str):
        raise ConfigError(
            f"it is the file of a training run, whose data set file is {data['dataset']!r}; give that one"
        )
    sections = _sections(data, "directory", of_file, *data)
    general = {key: value for key, value in data.items() if key != "directory"}
    for directory in sections:
        given = {"frame_buckets": [1], **general, **directory}
        path = _text(given, "path")
        clips = _preset("diffusion-pipe", given)
        lost = _starts_here("path", path)
        for key in ("framerate", "pixels_round_to_multiple"):
            if key not in given:
                lost.append(f"{key}: is that of Wan, 16; set your model's")
        if "resolutions" not in given:
            hint = "; size_buckets have no preset" if "size_buckets" in given else ""
            raise ConfigError(
                f"it has no 'resolutions'{hint}. Add resolutions to a copy of it, or begin with "
                "`latentcache init` and write clips.buckets.sizes yourself"
            )
        resolutions = list(given["resolutions"])
        lost += [
            f"resolutions: {resolution} needs a cache of its own, as each clip is encoded again"
            for resolution in resolutions[1:]
        ]
        clips["resolutions"] = resolutions[:1]
        if not any(n > 1 for n in given["frame_buckets"]):
            clips |= {"frame_buckets": [5], "frames": 1}
            lost.append(f"frame_buckets: {_FIRST_FRAMES}")
        else:
            lost.append(
                "frame_buckets: only videos are taken; images need a configuration of their own, with "
                "frames: 1"
            )
        why = {
            "size_buckets": "diffusion-pipe chooses frames by shape; write clips.buckets.sizes yourself",
            "mask_path": "masks are not encoded",
            "control_path": "control media are not encoded",
            "caption_prefix": "captions are kept as they are",
            "shuffle_tags": "captions are kept as they are",
        }
        used = {*clips, "path", "num_repeats"}
        lost += _others(given, used, why)
        corpus = _weighted({"source": _flat(path)}, given.get("num_repeats", 1))
        yield Converted(corpus=corpus, clips=clips, lost=tuple(lost))


def _simpletuner(data: Any, of_file: list[str]) -> Iterator[Converted]:
    if data and not _is_list_of_sections(data):
        raise ConfigError(f"it is no list of sections. {_GIVE}")
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
    is_video, is_local = given.get("dataset_type") == "video", given.get("type", "local") == "local"
    video = given.get("video", {})
    clips = _preset("simpletuner", given)
    clips["num_frames"] = video.get("num_frames", 125) if is_video else 1
    lost = [] if is_video else [f"dataset_type: {_FIRST_FRAMES}"]
    if is_local:
        # The second is the name that it had once.
        place = next((k for k in _DATA_DIRS if given.get(k)), _DATA_DIRS[0])
        source = _text(given, place)
        used = {place}
        lost += _starts_here(place, source)
    else:
        prefix = given.get("aws_data_prefix") or ""
        source = f"s3://{_text(given, 'aws_bucket_name')}/{prefix}"
        used = {"aws_bucket_name", "aws_data_prefix"}
    if given.get("resolution_type", "pixel_area") == "pixel":
        clips["resolution_type"] = "pixel_area"
        lost.append("resolution_type: pixel (of the shorter side) is taken for pixel_area")
    if given.get("crop"):
        lost.append("crop: is taken for false; the sizes that crop_aspect would give differ")
    if (strategy := given.get("caption_strategy", "textfile")) != "textfile":
        lost.append(f"caption_strategy: {strategy}; only .txt files are read")
    elif not given.get("disable_multiline_split"):
        lost.append(
            "caption_strategy: there each line of a text file is a caption; here the whole file is one. "
            "Several captions per source come from a table"
        )
    counted = ("num_frames",) if is_video else ()
    lost += [f"video.{key}: {_NO_EQUAL}" for key in video if key not in counted]
    why = {
        "id": "is a name for SimpleTuner only",
        "probability": _SHARES,
        "cache_dir_vae": "is SimpleTuner's cache; set cache.url",
        "crop_style": "is taken for center",
        "num_frames": "SimpleTuner reads video.num_frames",
    }
    used |= {*clips, "video", "type", "dataset_type", "repeats", "crop", "caption_strategy"}
    used |= {"disabled", "disable", "disable_multiline_split"}
    used -= {"num_frames"}
    times = given.get("repeats", 0)
    if isinstance(times, bool) or not isinstance(times, int | float):
        raise ConfigError(f"'repeats' should be a number, and is {times!r}")
    # SimpleTuner counts only further times: 0 is once.
    corpus = _weighted({"source": source}, times + 1)
    return Converted(corpus=corpus, clips=clips, lost=(*lost, *_others(given, used, why)))


_DATA_DIRS = ("instance_data_dir", "instance_data_root")

TRAINERS: Mapping[str, Callable[[Any, list[str]], Iterator[Converted]]] = {
    "musubi": _musubi,
    "finetrainers": _finetrainers,
    "diffusion-pipe": _diffusion_pipe,
    "simpletuner": _simpletuner,
}
#: Trainers whose files are JSON, whatever they are called.
JSON = ("finetrainers", "simpletuner")
