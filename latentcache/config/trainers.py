"""Data set files of trainers as configurations, for `latentcache init --from`."""

from __future__ import annotations

import json
import posixpath
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentcache.config.presets import PRESETS
from latentcache.errors import ConfigError

Plain = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One of a trainer's data sets. corpus, clips: our sections. lost: what they do not carry, in words."""

    corpus: dict[str, Any]
    clips: dict[str, Any]
    lost: tuple[str, ...]


def convert(trainer: str, path: str) -> list[Converted]:
    """Return the data sets of a trainer's file. Raises ConfigError."""
    data = _read(path)
    try:
        found = list(TRAINERS[trainer](data))
    except (TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"{path} is no data set file of {trainer}: {type(error).__name__} at {error}. Give the file "
            "that the trainer itself reads."
        ) from None
    if not found:
        raise ConfigError(f"{path} has no data set of videos or images that {trainer} would read.")
    return found


def _read(path: str) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path!r}: {error}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.endswith(".json") else "TOML"
        raise ConfigError(f"{path} is not {kind}: {error}") from None


def _preset(name: str, given: Plain) -> dict[str, Any]:
    """Return a section `clips` of a preset, with those of its keys that are given."""
    known = PRESETS[name].model_fields
    return {"preset": name, **{key: value for key, value in given.items() if key in known}}


def _others(given: Plain, used: set[str], why: Mapping[str, str]) -> tuple[str, ...]:
    """Say of every key that is not used that it is lost."""
    words = [f"{key}: {why[key]}" for key in given if key in why and key not in used]
    rest = [key for key in given if key not in used and key not in why]
    return (*words, *(f"{key}: {given[key]!r} has no equal here" for key in rest))


_OF_TRAINING = "belongs to training; the loader has its own"
_SHARES = "is of training; give the loader `weights` where caches are mixed"


def _weighted(corpus: dict[str, Any], times: Any) -> dict[str, Any]:
    """Return a section `corpus` whose clips come so many times per epoch."""
    return corpus if times == 1 else {**corpus, "weight": times}


def _captions(extension: Any) -> list[str]:
    if str(extension or "txt").lstrip(".") in ("txt", "caption"):
        return []
    return [
        f"captions in {extension} files: only .txt and .caption files beside the videos are read"
    ]


def _musubi(data: Plain) -> Iterator[Converted]:
    general = data.get("general", {})
    for dataset in data["datasets"]:
        given = {**general, **dataset}
        table = given.get("video_jsonl_file") or given.get("image_jsonl_file")
        folder = given.get("video_directory") or given.get("image_directory")
        is_video = bool(given.get("video_jsonl_file") or given.get("video_directory"))
        corpus: dict[str, Any] = {"source": str(table or folder)}
        if table:
            role = "video" if is_video else "image"
            corpus["columns"] = {role: f"{role}_path", "caption": "caption"}
        clips = _preset("musubi", given)
        lost = _captions(given.get("caption_extension"))
        if not is_video:
            clips["target_frames"] = [1]
        elif clips.get("source_fps") is not None:
            lost.append(
                "architecture: set it to that of your training, as it says the rate; wan is 16"
            )
        used = {
            *clips,
            "video_jsonl_file",
            "image_jsonl_file",
            "video_directory",
            "image_directory",
        }
        used |= {"caption_extension", "num_repeats"}
        corpus = _weighted(corpus, given.get("num_repeats", 1))
        why = {
            "batch_size": _OF_TRAINING,
            "cache_directory": "is musubi-tuner's cache; set cache.url",
            "control_directory": "control videos are not encoded",
        }
        yield Converted(corpus=corpus, clips=clips, lost=(*lost, *_others(given, used, why)))


def _finetrainers(data: Plain) -> Iterator[Converted]:
    for given in data["datasets"]:
        root = str(given["data_root"])
        lost = []
        if not posixpath.splitext(root)[1]:
            lost.append(
                "metadata.csv or metadata.jsonl in data_root: name it as corpus.source, with columns"
            )
        if given.get("dataset_type", "video") == "image":
            sizes = given["image_resolution_buckets"]
            clips = _preset("finetrainers", given)
            clips["video_resolution_buckets"] = [f"1x{h}x{w}" for h, w in map(_two, sizes)]
        else:
            clips = _preset("finetrainers", given)
            buckets = given["video_resolution_buckets"]
            clips["video_resolution_buckets"] = ["x".join(map(str, _parts(b))) for b in buckets]
        used = {*clips, "data_root", "dataset_type", "image_resolution_buckets"}
        why = {
            "id_token": "is not put before captions; write it into them",
            "remove_common_llm_caption_prefixes": "captions are kept as they are",
            "caption_options": "captions are kept as they are",
        }
        yield Converted(
            corpus={"source": root}, clips=clips, lost=(*lost, *_others(given, used, why))
        )


def _parts(bucket: Any) -> list[Any]:
    return bucket.split("x") if isinstance(bucket, str) else list(bucket)


def _two(bucket: Any) -> tuple[Any, Any]:
    height, width = _parts(bucket)
    return height, width


def _diffusion_pipe(data: Plain) -> Iterator[Converted]:
    general = {key: value for key, value in data.items() if key != "directory"}
    for directory in data["directory"]:
        given = {"frame_buckets": [1], **general, **directory}
        clips = _preset("diffusion-pipe", given)
        lost = [
            "framerate and pixels_round_to_multiple: are those of Wan (16 and 16); set your model's"
        ]
        lost += [
            f"resolutions: {resolution} needs a cache of its own, as each clip is encoded again"
            for resolution in given.get("resolutions", [])[1:]
        ]
        clips["resolutions"] = list(given["resolutions"])[:1]
        if not any(n > 1 for n in given["frame_buckets"]):
            clips |= {"frame_buckets": [5], "frames": 1}
            lost.append(
                "frame_buckets: only images are taken; of videos the first frame would be, too"
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
        corpus = _weighted({"source": str(given["path"])}, given.get("num_repeats", 1))
        yield Converted(corpus=corpus, clips=clips, lost=tuple(lost))


def _simpletuner(data: Any) -> Iterator[Converted]:
    for given in data:
        if given.get("dataset_type", "image") not in ("image", "video") or given.get("disabled"):
            continue
        is_video = given.get("dataset_type") == "video"
        video = given.get("video", {})
        clips = _preset("simpletuner", given)
        clips["num_frames"] = video.get("num_frames", 125) if is_video else 1
        source = given.get("instance_data_dir") or given.get("instance_data_root")
        if given.get("type", "local") == "aws":
            source = f"s3://{given['aws_bucket_name']}/{given.get('aws_data_prefix', '')}"
        lost = []
        if given.get("resolution_type", "pixel_area") == "pixel":
            clips["resolution_type"] = "pixel_area"
            lost.append("resolution_type: pixel (of the shorter side) is taken for pixel_area")
        if given.get("crop"):
            lost.append("crop: is taken for false; the sizes that crop_aspect would give differ")
        if given.get("caption_strategy", "textfile") != "textfile":
            lost.append(f"caption_strategy: {given['caption_strategy']}; only .txt files are read")
        used = {*clips, "video", "instance_data_dir", "instance_data_root", "type", "dataset_type"}
        used |= {
            "repeats",
            "crop",
            "caption_strategy",
            "aws_bucket_name",
            "aws_data_prefix",
            "disabled",
        }
        lost += [f"video.{key}: has no equal here" for key in video if key != "num_frames"]
        why = {
            "id": "is a name for SimpleTuner only",
            "probability": _SHARES,
            "cache_dir_vae": "is SimpleTuner's cache; set cache.url",
            "crop_style": "is taken for center",
        }
        # SimpleTuner counts only further times: 0 is once.
        corpus = _weighted({"source": str(source)}, given.get("repeats", 0) + 1)
        yield Converted(corpus=corpus, clips=clips, lost=(*lost, *_others(given, used, why)))


TRAINERS: Mapping[str, Callable[[Any], Iterator[Converted]]] = {
    "musubi": _musubi,
    "finetrainers": _finetrainers,
    "diffusion-pipe": _diffusion_pipe,
    "simpletuner": _simpletuner,
}
