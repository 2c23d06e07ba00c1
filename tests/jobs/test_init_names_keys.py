"""What `init --from` cannot follow in a trainer's file, it names."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.config.trainers import convert
from latentcache.errors import ConfigError
from tests.tools.trainer_files import LEAST, SIMPLETUNER, converted, file_of

#: Keys that a data set of each trainer can have, with values that are not what they are without them.
GIVEN: dict[str, dict[str, object]] = {
    "musubi": {
        "target_frames": [25], "frame_extraction": "chunk", "frame_stride": 2, "frame_sample": 3,
        "max_frames": 33, "source_fps": 30.0, "architecture": "hv", "num_repeats": 2, "batch_size": 2,
        "caption_extension": ".cap", "cache_directory": "/c", "control_directory": "/c",
        "multiple_target": True, "control_resolution": [512, 512], "fp_latent_window_size": 9,
        "no_resize_control": True, "skip_corrupted_cache": True, "unheard_of": 1,
    },
    "finetrainers": {
        "reshape_mode": "resize_crop", "image_resolution_buckets": ["512x512"], "id_token": "T",
        "remove_common_llm_caption_prefixes": True, "caption_options": {}, "unheard_of": 1,
        "rename_columns": {"text": "caption"}, "drop_columns": ["url"],
    },
    "diffusion-pipe": {
        "ar_buckets": [1.5], "min_ar": 0.5, "max_ar": 2.0, "num_ar_buckets": 5, "num_repeats": 3,
        "skip_empty_caption": False, "mask_path": "/m", "control_path": "/c", "caption_prefix": "a",
        "shuffle_tags": True, "video_clip_mode": "single_middle", "framerate": 24.0,
        "pixels_round_to_multiple": 32, "cache_shuffle_num": 2, "online_captions": True, "unheard_of": 1,
    },
    "simpletuner": {
        "id": "a", "resolution_type": "area", "aspect_bucket_alignment": 32, "num_frames": 9,
        "video": {"num_frames": 81, "min_frames": 90}, "repeats": 3, "crop": True, "crop_style": "random",
        "max_num_samples": 7,
        "caption_strategy": "filename", "probability": 0.5, "cache_dir_vae": "/c", "minimum_image_size": 1,
        "aws_secret_access_key": "SECRET", "instance_data_root": "/other", "unheard_of": 1,
    },
}  # fmt: skip
#: Keys that change nothing by themselves, in the trainer either.
SILENT = {"frame_stride", "frame_sample", "max_frames", "architecture"}
SILENT |= {"ar_buckets", "min_ar", "max_ar", "num_ar_buckets"}
#: What no trainer takes.
JUNK: list[object] = [
    *(None, True, -1, 0, 1 << 70, 1e308, float("nan"), float("inf")),
    *("", "x", "9" * 5000, "\x1b[31m", [], [[]], ["a", 1], [None], {}, {"a": {}}, [-1, 1e9]),
]


@pytest.mark.parametrize("trainer", LEAST)
def test_every_key_is_followed_or_named(tmp_path: Path, trainer: str) -> None:
    without = converted(tmp_path, trainer, file_of(trainer, LEAST[trainer]))
    for key, value in GIVEN[trainer].items():
        found = converted(tmp_path, trainer, file_of(trainer, {**LEAST[trainer], key: value}))
        said = [line for line in found.lost if line.startswith((f"{key}:", f"{key}."))]
        is_followed = any(
            getattr(found, name) != getattr(without, name) for name in ("corpus", "clips", "reads")
        )
        assert is_followed or said or key in SILENT, key
        assert "SECRET" not in str(found)


@pytest.mark.parametrize("trainer", ["musubi", "finetrainers", "diffusion-pipe"])
def test_what_a_file_says_beside_its_data_sets_is_named(tmp_path: Path, trainer: str) -> None:
    data = file_of(trainer, LEAST[trainer], validation={"every": 5})
    assert "validation: has no equal here" in converted(tmp_path, trainer, data).lost


def test_data_sets_of_simpletuner_that_are_left_out_are_named(tmp_path: Path) -> None:
    others: list[dict[str, object]] = [
        {"id": "text", "dataset_type": "text_embeds"},
        {"id": "off", "dataset_type": "video", "disable": True},
        {"id": "far", "dataset_type": "video", "type": "huggingface"},
    ]
    found = converted(tmp_path, "simpletuner", [*others, LEAST["simpletuner"]])
    assert [line for line in found.lost if line.startswith("data set")] == [
        "data set 1, 'text': it is of text_embeds",
        "data set 2, 'off': it is disabled",
        "data set 3, 'far': it is read from huggingface; make a folder or a table of it",
    ]
    path = tmp_path / "others.json"
    path.write_text(json.dumps(others))
    with pytest.raises(ConfigError, match="Left out: data set 1, 'text': it is of text_embeds"):
        convert("simpletuner", str(path))


@pytest.mark.long
@pytest.mark.parametrize("trainer", LEAST)
def test_whatever_stands_there_ends_in_a_configuration_or_a_sentence(
    tmp_path: Path, trainer: str
) -> None:
    path = tmp_path / "set.json"
    least = LEAST[trainer]
    files = [
        file_of(trainer, {**least, **GIVEN[trainer], key: junk})
        for key in {**least, **GIVEN[trainer]}
        for junk in JUNK
    ]
    files += [file_of(trainer, junk) for junk in JUNK] + JUNK
    files += [file_of(trainer, {k: v for k, v in least.items() if k != key}) for key in least]
    num_made = 0
    for data in files:
        path.write_text(json.dumps(data), encoding="utf-8-sig")
        with contextlib.suppress(ConfigError):
            for one in convert(trainer, str(path)):
                raw = {"corpus": one.corpus, "clips": one.clips, "encoder": {"kind": "dct"}}
                validate(Config, {**raw, "cache": {"url": "x"}}, str(path))
                assert "None" not in one.corpus["source"]
                num_made += 1
    assert 0 < num_made < len(files)


def test_finetrainers_center_crop_is_taken_for_resize_crop_and_said(tmp_path: Path) -> None:
    file = tmp_path / "training.json"
    one = {
        "data_root": "/data/set",
        "dataset_type": "image",
        "image_resolution_buckets": [[512, 512]],
    }
    file.write_text(json.dumps({"datasets": [{**one, "reshape_mode": "center_crop"}]}))
    (found,) = convert("finetrainers", str(file))
    assert found.clips["reshape_mode"] == "resize_crop"
    assert any(line.startswith("reshape_mode: center_crop") for line in found.lost)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "dataset = 'examples/dataset.toml'\nepochs = 3\n",
            "whose data set file is 'examples/dataset.toml'",
        ),
        (
            "size_buckets = [[960, 960, 1]]\n[[directory]]\npath = '/d'\n",
            "size_buckets have no preset",
        ),
        (
            "size_buckets = [[960, 960, 1]]\nresolutions = [512]\n[[directory]]\npath = '/d'\n",
            "diffusion-pipe follows them and no resolutions",
        ),
    ],
)
def test_other_files_of_diffusion_pipe_are_told_apart(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        convert("diffusion-pipe", str(file))


@pytest.mark.parametrize(("frames", "is_said"), [(81, False), (90, True)])
def test_min_frames_of_simpletuner_count_where_they_are_more_than_a_clip_s(
    tmp_path: Path, frames: int, is_said: bool
) -> None:
    """`init_backend_config` of SimpleTuner bc8e6ab wants no fewer; shorter videos are rejected here."""
    video = {"num_frames": 81, "min_frames": frames}
    found = converted(tmp_path, "simpletuner", [{**SIMPLETUNER[0], "video": video}])
    assert any("video.min_frames: videos that it leaves" in line for line in found.lost) == is_said


@pytest.mark.parametrize(("backend", "is_said"), [("parquet", True), ("discovery", False)])
def test_a_table_that_says_which_files_count_for_simpletuner_is_named(
    tmp_path: Path, backend: str, is_said: bool
) -> None:
    """`ParquetMetadataBackend._process_for_bucket` of SimpleTuner bc8e6ab skips files without a row."""
    found = converted(tmp_path, "simpletuner", [{**SIMPLETUNER[0], "metadata_backend": backend}])
    said = [line for line in found.lost if line.startswith("metadata_backend: files without a row")]
    assert bool(said) == is_said
    assert is_said or not [line for line in found.lost if line.startswith("metadata_backend")]
