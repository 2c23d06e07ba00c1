"""`latentcache init --from`: trainers' data set files become configurations that are valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs import parsers
from jobs.init import EXAMPLES, init
from latentcache.config.files import load_config
from latentcache.config.sections import CorpusConfig
from latentcache.config.trainers import convert
from latentcache.corpus.sources import read_corpus
from latentcache.errors import ConfigError
from tests.tools.trainer_files import LEAST, SIMPLETUNER, converted, file_of

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


def test_repeats_of_simpletuner_are_whole(tmp_path: Path) -> None:
    """As `init_backend_config` of SimpleTuner bc8e6ab rounds them down."""
    found = converted(tmp_path, "simpletuner", [{**SIMPLETUNER[0], "repeats": 1.9}])
    assert found.corpus["weight"] == 2


def test_a_table_of_musubi_says_where_its_paths_start(tmp_path: Path) -> None:
    """`VideoJsonlDatasource` of musubi-tuner 30c658c opens them as they are."""
    data = file_of("musubi", {"video_jsonl_file": "/data/a.jsonl"})
    lost = converted(tmp_path, "musubi", data).lost
    assert any("relative paths in it start at its folder here" in line for line in lost)
