"""`latentcache init --from`: trainers' data set files become configurations that are valid."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import yaml

from jobs import parsers
from jobs.init import EXAMPLES, init
from latentcache.config.files import load_config, validate
from latentcache.config.sections import Config, CorpusConfig
from latentcache.config.trainers import Converted, convert
from latentcache.corpus.sources import read_corpus
from latentcache.errors import ConfigError

MUSUBI = """
[general]
resolution = [480, 272]
caption_extension = ".txt"
batch_size = 2
enable_bucket = true

[[datasets]]
video_directory = "/data/videos"
cache_directory = "/data/cache"
target_frames = [1, 25, 47]
frame_extraction = "uniform"
frame_sample = 4
source_fps = 30.0

[[datasets]]
video_jsonl_file = "/data/more.jsonl"
frame_extraction = "full"
max_frames = 50
num_repeats = 3
"""
FINETRAINERS = {
    "datasets": [
        {
            "data_root": "/data/set",
            "dataset_type": "video",
            "id_token": "TOK",
            "video_resolution_buckets": [[49, 480, 720]],
            "reshape_mode": "bicubic",
        }
    ]
}
DIFFUSION_PIPE = """
resolutions = [512, 768]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1, 33, 65]
[[directory]]
path = "/data/videos"
num_repeats = 5
"""
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


def run(*arguments: str) -> None:
    assert init(parsers.init().parse_args(arguments)) == 0


def written(tmp_path: Path, trainer: str, text: str) -> Path:
    path = tmp_path / ("set.toml" if trainer not in JSON else "set.json")
    path.write_text(text, encoding="utf-8")
    return path


JSON = ("finetrainers", "simpletuner")


@pytest.mark.parametrize(
    ("trainer", "text", "lost"),
    [
        ("finetrainers", json.dumps(FINETRAINERS), ["id_token", "metadata.csv"]),
        ("diffusion-pipe", DIFFUSION_PIPE, ["768", "framerate"]),
        ("simpletuner", json.dumps(SIMPLETUNER), ["aspect_bucket_alignment", "id"]),
    ],
)
def test_one_data_set_becomes_one_valid_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str, text: str, lost: list[str]
) -> None:
    path, output = written(tmp_path, trainer, text), tmp_path / "config.yaml"
    run("--from", trainer, str(path), "-o", str(output))
    out = capsys.readouterr().out
    assert load_config(str(output)).clips.resize is not None
    said = [line for line in out.splitlines() if "not carried over" in line]
    for word in lost:
        assert any(word in line for line in said), word
    comments = [line for line in output.read_text().splitlines() if line.startswith("# Not")]
    assert len(comments) == len(said)


def test_each_data_set_of_musubi_gets_a_file_and_keeps_its_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "musubi", MUSUBI)
    run("ltx", "--from", "musubi", str(path), "-o", str(tmp_path / "c.yaml"))
    out = capsys.readouterr().out
    first, second = (load_config(str(tmp_path / f"c-{n}.yaml")) for n in (1, 2))
    assert first.clips.frame_counts == [45, 25, 1]
    assert (first.clips.lengths, first.clips.select) == ("each", "linspace:4")
    assert (first.clips.sampling, first.clips.fps, first.clips.source_fps) == ("accumulate", 16, 30)
    assert (second.clips.frames, second.clips.too_short) == (49, "shorten")
    assert second.corpus.columns == {"video": "video_path", "caption": "caption"}
    assert first.encoder == yaml.safe_load((EXAMPLES / "ltx.yaml").read_text())["encoder"]
    assert (first.corpus.weight, second.corpus.weight) == (None, 3)
    assert "num_repeats" not in out
    assert "batch_size" in out


@pytest.mark.parametrize(
    ("trainer", "text", "weight"),
    [("diffusion-pipe", DIFFUSION_PIPE, 5), ("simpletuner", json.dumps(SIMPLETUNER), 2 + 1)],
)
def test_repeats_become_the_weight_that_gives_as_many(
    tmp_path: Path, trainer: str, text: str, weight: int
) -> None:
    """SimpleTuner counts the times after the first."""
    path, output = written(tmp_path, trainer, text), tmp_path / "config.yaml"
    run("--from", trainer, str(path), "-o", str(output))
    assert load_config(str(output)).corpus.weight == weight


def test_a_file_that_is_there_stays_and_nothing_is_written(tmp_path: Path) -> None:
    path = written(tmp_path, "musubi", MUSUBI)
    (tmp_path / "c-2.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"c-2\.yaml exists"):
        run("--from", "musubi", str(path), "-o", str(tmp_path / "c.yaml"))
    assert not (tmp_path / "c-1.yaml").exists()


def test_a_data_set_that_is_wrong_leaves_none_of_the_others(tmp_path: Path) -> None:
    """Else the same command, once the file is corrected, would find the first one in its way."""
    wrong = f"{MUSUBI}\n[[datasets]]\nvideo_directory = '/a'\nresolution = 'wide'\n"
    path = written(tmp_path, "musubi", wrong)
    with pytest.raises(ConfigError, match="data set 3"):
        run("--from", "musubi", str(path), "-o", str(tmp_path / "c.yaml"))
    assert not list(tmp_path.glob("c-*.yaml"))


def test_what_a_trainer_s_file_calls_its_keys_stays_a_comment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"video_directory": "/v", "x\nencoder: {kind: mine}\x1b[31m": 1, "resolution": [480, 272]}
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"datasets": [odd]}))
    run("--from", "musubi", str(path), "-o", "-")
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["encoder"]["kind"] == "diffusers_video"
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("trainer", "text", "said"),
    [
        *(
            (
                "finetrainers",
                json.dumps({"datasets": [{**FINETRAINERS["datasets"][0], **wrong}]}),
                "is no data set file of finetrainers",
            )
            for wrong in (
                {"dataset_type": "image", "image_resolution_buckets": [[512]]},
                {"dataset_type": "image", "image_resolution_buckets": ["1x2x3"]},
            )
        ),
        ("musubi", f"[[datasets]]\nvideo_directory = 'a'\nresolution = {1 << 60}", "resolution"),
        ("diffusion-pipe", DIFFUSION_PIPE.replace("ts = 7", f"ts = {1 << 60}"), "num_ar_buckets"),
        ("diffusion-pipe", DIFFUSION_PIPE.replace("max_ar = 2.0", "max_ar = inf"), "max_ar"),
        ("simpletuner", json.dumps([{**SIMPLETUNER[0], "resolution": 1e309}]), "resolution"),
        ("musubi", "x = ", "is not TOML"),
        (
            "musubi",
            "x = 1",
            "cannot be taken over: it has no list 'datasets' of sections. Give the file",
        ),
        ("musubi", "datasets = 3", "it has no list 'datasets' of sections. Give the file"),
        ("musubi", "[[datasets]]\nvideo_directory = 'a'\nresolution = [8, 8]", "no buckets below"),
        ("simpletuner", "{}", "has no data set"),
        ("simpletuner", '["a"]', "it is no list of sections. Give the file"),
        ("musubbi", "x = 1", "Did you mean 'musubi'?"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_message(
    tmp_path: Path, trainer: str, text: str, said: str
) -> None:
    path = written(tmp_path, trainer, text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        run("--from", trainer, str(path), "-o", "-")


#: A data set of each trainer, as it stands in the list of its file.
LEAST: dict[str, dict[str, object]] = {
    "musubi": {"video_directory": "/v", "resolution": [480, 272]},
    "finetrainers": {"data_root": "/v", "video_resolution_buckets": ["49x480x720"]},
    "diffusion-pipe": {"path": "/v", "resolutions": [512], "frame_buckets": [33]},
    "simpletuner": {"instance_data_dir": "/v", "dataset_type": "video", "resolution": 480},
}
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


def file_of(trainer: str, dataset: object, **others: object) -> object:
    if trainer == "simpletuner":
        return [dataset]
    return {("directory" if trainer == "diffusion-pipe" else "datasets"): [dataset], **others}


def converted(tmp_path: Path, trainer: str, data: object) -> Converted:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(data))
    (found,) = convert(trainer, str(path))
    return found


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


#: What no trainer takes.
JUNK: list[object] = [
    *(None, True, -1, 0, 1 << 70, 1e308, float("nan"), float("inf")),
    *("", "x", "9" * 5000, "\x1b[31m", [], [[]], ["a", 1], [None], {}, {"a": {}}, [-1, 1e9]),
]


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


def test_a_folder_is_read_no_deeper_than_its_trainer_reads_it(tmp_path: Path) -> None:
    """diffusion-pipe keeps its own cache in folders of it, and musubi-tuner reads none of them."""
    folder = tmp_path / "a [1] set"
    (folder / "cache").mkdir(parents=True)
    for path in (folder / "one.mp4", folder / "cache" / "two.mp4"):
        path.write_bytes(b"")
    for trainer, key in (("musubi", "video_directory"), ("diffusion-pipe", "path")):
        found = converted(tmp_path, trainer, file_of(trainer, {**LEAST[trainer], key: str(folder)}))
        corpus = read_corpus(CorpusConfig(**found.corpus))
        assert [Path(url).name for url in corpus.table["url"].to_pylist()] == ["one.mp4"]


def test_relative_paths_are_said_to_start_here(tmp_path: Path) -> None:
    data = file_of("musubi", {**LEAST["musubi"], "video_directory": "videos"})
    found = converted(tmp_path, "musubi", data)
    assert found.corpus["source"] == "videos/*"
    assert "video_directory: 'videos' starts where precompute is run, not where the trainer is" in (
        found.lost
    )


@pytest.mark.parametrize("kept_whole", [True, False])
def test_lines_of_text_files_are_captions_for_simpletuner_only(
    tmp_path: Path, kept_whole: bool
) -> None:
    dataset = {**SIMPLETUNER[0], "disable_multiline_split": kept_whole}
    lost = converted(tmp_path, "simpletuner", [dataset]).lost
    assert any(line.startswith("caption_strategy: there each line") for line in lost) != kept_whole
    assert not [line for line in lost if line.startswith("disable_multiline_split")]


def test_sizes_of_finetrainers_that_differ_by_frames_are_configurations_of_their_own(
    tmp_path: Path,
) -> None:
    file, name = tmp_path / "training.json", "video_resolution_buckets"
    differing = {"data_root": "/data", name: [[49, 480, 720], "17x256x256", "49x256x256"]}
    alike = {"data_root": "/data", name: ["17x256x256", "49x256x256"]}
    file.write_text(json.dumps({"datasets": [differing, alike]}))
    first, second, third = convert("finetrainers", str(file))
    assert first.clips[name] == ["49x480x720", "49x256x256"]
    assert second.clips[name] == ["17x256x256"]
    assert third.clips[name] == ["17x256x256", "49x256x256"]
    for one in (first, second):
        assert any("each number is a configuration of its own" in line for line in one.lost)
    assert not any("each number" in line for line in third.lost)
    run("--from", "finetrainers", str(file), "-o", str(tmp_path / "c.yaml"))
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == [
        f"c-{n}.yaml" for n in (1, 2, 3)
    ]


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


def test_what_trainers_read_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """diffusion-pipe's `PreprocessMediaFile` and SimpleTuner's `MultiaspectImage` ask the training."""
    data = file_of(
        "diffusion-pipe", {**LEAST["diffusion-pipe"], "video_clip_mode": "single_middle"}
    )
    found = converted(tmp_path, "diffusion-pipe", data)
    assert "video_clip_mode" not in found.clips
    assert any(line.startswith("video_clip_mode: is the training run's") for line in found.lost)
    data = file_of("simpletuner", {**LEAST["simpletuner"], "aspect_bucket_alignment": 32})
    found = converted(tmp_path, "simpletuner", data)
    assert "aspect_bucket_alignment" not in found.clips
    assert any(line.startswith("aspect_bucket_alignment: is among the") for line in found.lost)


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


def test_repeats_of_simpletuner_are_whole(tmp_path: Path) -> None:
    """As `init_backend_config` of SimpleTuner bc8e6ab rounds them down."""
    found = converted(tmp_path, "simpletuner", [{**SIMPLETUNER[0], "repeats": 1.9}])
    assert found.corpus["weight"] == 2


def test_a_table_of_musubi_says_where_its_paths_start(tmp_path: Path) -> None:
    """`VideoJsonlDatasource` of musubi-tuner 30c658c opens them as they are."""
    data = file_of("musubi", {"video_jsonl_file": "/data/a.jsonl"})
    lost = converted(tmp_path, "musubi", data).lost
    assert any("relative paths in it start at its folder here" in line for line in lost)
