"""Data sets as trainers' files describe them, and what `init --from` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

from latentcache.config.trainers import Converted, convert

SIMPLETUNER = [
    {
        "id": "videos",
        "type": "local",
        "dataset_type": "video",
        "instance_data_dir": "/data/videos",
        "resolution": 480,
        "resolution_type": "pixel_area",
        "crop": False,
        "caption_strategy": "textfile",
        "repeats": 2,
        "video": {"num_frames": 81, "min_frames": 81},
    },
    {"id": "text", "dataset_type": "text_embeds", "cache_dir": "/x"},
]
#: A data set of each trainer, as it stands in the list of its file.
LEAST: dict[str, dict[str, object]] = {
    "musubi": {"video_directory": "/v", "resolution": [480, 272]},
    "finetrainers": {"data_root": "/v", "video_resolution_buckets": ["49x480x720"]},
    "diffusion-pipe": {"path": "/v", "resolutions": [512], "frame_buckets": [33]},
    "simpletuner": {"instance_data_dir": "/v", "dataset_type": "video", "resolution": 480},
}


def file_of(trainer: str, dataset: object, **others: object) -> object:
    if trainer == "simpletuner":
        return [dataset]
    return {("directory" if trainer == "diffusion-pipe" else "datasets"): [dataset], **others}


def converted(tmp_path: Path, trainer: str, data: object) -> Converted:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(data))
    (found,) = convert(trainer, str(path))
    return found
