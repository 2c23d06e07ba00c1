"""`latentcache init --from`: what lies in a folder, and which of it the trainer takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.init_folders import looked_at, one_glob
from latentcache.config.sections import CorpusConfig
from latentcache.config.trainers import Converted, convert
from latentcache.corpus.sources import read_corpus

Given = dict[str, object]
SIZES = "video_resolution_buckets"
#: The key of the folder, and a data set of videos and one of images, of trainers that read one folder deep.
FLAT: dict[str, tuple[str, str, Given, Given]] = {
    "musubi": ("video_directory", "image_directory", {"target_frames": [5]}, {}),
    "finetrainers": (
        "data_root",
        "data_root",
        {"dataset_type": "video", SIZES: ["5x64x96"]},
        {"dataset_type": "image", "image_resolution_buckets": ["64x96"]},
    ),
    "diffusion-pipe": (
        "path",
        "path",
        {"resolutions": [64], "frame_buckets": [1, 5]},
        {"resolutions": [64], "frame_buckets": [1]},
    ),
}


def found_by(tmp_path: Path, trainer: str, given: Given) -> Converted:
    path = tmp_path / "set.json"
    name = "directory" if trainer == "diffusion-pipe" else "datasets"
    path.write_text(json.dumps([given] if trainer == "simpletuner" else {name: [given]}))
    (found,) = convert(trainer, str(path))
    return looked_at(found)


def of_kind(tmp_path: Path, trainer: str, kind: str, folder: Path, **more: object) -> Converted:
    video_key, image_key, videos, images = FLAT[trainer]
    key, rest = (video_key, videos) if kind == "video" else (image_key, images)
    return found_by(tmp_path, trainer, {key: str(folder), **rest, **more})


def folder_of(tmp_path: Path, names: Sequence[str]) -> Path:
    folder = tmp_path / "a [1] set"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def taken(found: Converted) -> list[str]:
    table = read_corpus(CorpusConfig(**found.corpus)).table
    return sorted(Path(url).name for url in table["url"].to_pylist())


def said(found: Converted) -> list[str]:
    return [line for line in found.lost if "left out by" in line]


@pytest.mark.parametrize("trainer", ["musubi", "finetrainers"])
def test_a_data_set_of_videos_takes_no_images(tmp_path: Path, trainer: str) -> None:
    names = ["a.mp4", "a.txt", "a.jpg", "b.mp4", "b.txt", "b_thumb.png", "._c.mp4"]
    found = of_kind(tmp_path, trainer, "video", folder_of(tmp_path, names))
    assert taken(found) == ["a.mp4", "b.mp4"]
    assert not said(found)
    assert any("has images, too, so only *.mp4 is taken" in line for line in found.lost)


@pytest.mark.parametrize("trainer", FLAT)
def test_a_data_set_of_images_takes_no_videos(tmp_path: Path, trainer: str) -> None:
    names = ["a.jpg", "a.txt", "a.mp4", "b.jpg", "b.txt", "c.mov", "c.txt"]
    found = of_kind(tmp_path, trainer, "image", folder_of(tmp_path, names))
    assert taken(found) == ["a.jpg", "b.jpg"]
    assert not said(found)
    assert any("has videos, too, so only *.jpg is taken" in line for line in found.lost)


@pytest.mark.parametrize(
    ("kind", "theirs", "others"),
    [
        ("video", ["a.mp4", "b.MP4"], ["a.jpg", "a.jxl"]),
        ("video", ["a.mp4", "b.mov", "c.mkv"], ["a.png", "a.tif"]),
        ("image", ["a.jpg", "b.png"], ["a.mpg", "a.mp4"]),
        ("image", ["a.jpg", "b.bmp"], ["a.mpg", "a.wmv"]),
    ],
)
def test_one_glob_takes_suffixes_of_one_length(
    tmp_path: Path, kind: str, theirs: list[str], others: list[str]
) -> None:
    found = of_kind(tmp_path, "musubi", kind, folder_of(tmp_path, [*theirs, *others]))
    assert taken(found) == theirs
    assert not said(found)


def test_a_glob_matches_no_suffix_of_the_other_kind() -> None:
    assert one_glob({".mp4", ".MP4"}, "video") == "*.[Mm][Pp]4"
    assert one_glob({".webm", ".mpep"}, "video") is None  # *.[mw][ep][be][mp] would match a.webp
    assert one_glob({".jpg", ".jpeg"}, "image") is None
    assert one_glob((), "image") is None


@pytest.mark.parametrize("trainer", ["musubi", "finetrainers"])
def test_where_no_glob_tells_kinds_apart_it_is_said_what_is_taken(
    tmp_path: Path, trainer: str
) -> None:
    names = ["a.jpg", "a.txt", "b.jpeg", "b.txt", "a.mp4", "b.mov"]
    found = of_kind(tmp_path, trainer, "image", folder_of(tmp_path, names))
    assert taken(found) == ["a.jpg", "a.mp4", "b.jpeg", "b.mov"]
    (line,) = said(found)
    assert (
        "videos (each by its first frame): 2, such as a.mp4. Move these elsewhere, or make" in line
    )


def test_videos_and_images_of_one_folder_of_diffusion_pipe_are_one_cache(tmp_path: Path) -> None:
    """`DirectoryDataset` of diffusion-pipe 8f83dbf has a bucket of one frame always, for images."""
    folder = folder_of(tmp_path, ["a.mp4", "a.txt", "b.jpg", "b.txt"])
    found = of_kind(tmp_path, "diffusion-pipe", "video", folder)
    assert taken(found) == ["a.mp4", "b.jpg"]
    assert not said(found)
    assert not [line for line in found.lost if line.startswith("frame_buckets")]


def test_images_among_videos_are_said_of_simpletuner(tmp_path: Path) -> None:
    """`DiscoveryMetadataBackend` of SimpleTuner bc8e6ab lists both, whatever the data set's type."""
    folder = folder_of(tmp_path, ["a.mp4", "b.jpg"])
    given: Given = {"instance_data_dir": str(folder), "resolution": 480}
    found = found_by(tmp_path, "simpletuner", {**given, "dataset_type": "video"})
    assert taken(found) == ["a.mp4", "b.jpg"]
    assert any("images among the videos are taken, too" in line for line in found.lost)
    found = found_by(tmp_path, "simpletuner", {**given, "dataset_type": "image"})
    assert any("of videos among the images the first frame is taken" in x for x in found.lost)


@pytest.mark.parametrize(
    ("trainer", "kind", "more"),
    [
        ("musubi", "image", {"caption_extension": ".txt"}),
        ("diffusion-pipe", "video", {}),
        ("diffusion-pipe", "image", {"skip_empty_caption": True}),
        ("finetrainers", "video", {}),
        ("finetrainers", "image", {}),
    ],
)
def test_what_is_left_out_for_want_of_a_caption_is_named(
    tmp_path: Path, trainer: str, kind: str, more: Given
) -> None:
    """As `glob_images` of musubi-tuner 30c658c, `DirectoryDataset._metadata_map_fn` of diffusion-pipe
    8f83dbf, and `VideoCaptionFilePairDataset` and `ImageCaptionFilePairDataset` of finetrainers f476c37 do.
    """
    suffix = {"video": "mp4", "image": "png"}[kind]
    names = [f"{stem}.{suffix}" for stem in "abc"]
    folder = folder_of(tmp_path, ["a.txt", "b.caption", *names])
    (line,) = said(of_kind(tmp_path, trainer, kind, folder, **more))
    assert f"files without a .txt file beside them: 2, such as b.{suffix}" in line


@pytest.mark.parametrize(
    ("trainer", "kind", "more"),
    [
        ("musubi", "image", {}),  # without caption_extension all images are taken
        ("musubi", "video", {"caption_extension": ".txt"}),  # videos must have captions
        ("diffusion-pipe", "video", {"skip_empty_caption": False}),
    ],
)
def test_where_captions_do_not_count_nothing_is_said(
    tmp_path: Path, trainer: str, kind: str, more: Given
) -> None:
    folder = folder_of(tmp_path, ["a.mp4", "b.mp4"] if kind == "video" else ["a.jpg", "b.png"])
    found = of_kind(tmp_path, trainer, kind, folder, **more)
    assert not said(found)
    assert not [line for line in found.lost if line.startswith("skip_empty_caption")]


def test_suffixes_that_a_trainer_does_not_know_are_named(tmp_path: Path) -> None:
    names = ["a.mp4", "a.txt", "b.webm", "b.txt", "c.MP4", "c.txt"]
    folder = folder_of(tmp_path, names)
    (line,) = said(of_kind(tmp_path, "finetrainers", "video", folder))
    assert "files with a suffix that it does not know: 2, such as b.webm" in line
    assert not said(of_kind(tmp_path, "musubi", "video", folder))


def test_finetrainers_reads_no_subfolders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a.mp4", "a.txt", "sub/c.mp4", "sub/c.txt"])
    assert taken(of_kind(tmp_path, "finetrainers", "video", folder)) == ["a.mp4"]


def test_a_folder_of_finetrainers_with_a_table_is_the_table(tmp_path: Path) -> None:
    """As in `_initialize_local_dataset` of finetrainers f476c37; captions are what is called so last."""
    folder = folder_of(tmp_path, ["v/a.mp4", "v/b.mp4"])
    (folder / "metadata.csv").write_text("file_name,text\nv/a.mp4,one\n")
    more = {"rename_columns": {"text": "caption"}}
    found = of_kind(tmp_path, "finetrainers", "video", folder, **more)
    assert taken(found) == ["a.mp4"]
    corpus = read_corpus(CorpusConfig(**found.corpus))
    assert corpus.table["caption"].to_pylist() == ["one"]
    assert not [line for line in found.lost if "rename_columns" in line or "data_root" in line]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["sub/0.tar"], "its tar or Parquet files are read there"),
        (["videos.txt", "prompt.txt", "v/a.mp4"], "lists of videos and captions are not read"),
    ],
)
def test_other_folders_of_finetrainers_are_taken_whole(
    tmp_path: Path, names: list[str], note: str
) -> None:
    folder = folder_of(tmp_path, names)
    found = of_kind(tmp_path, "finetrainers", "video", folder)
    assert found.corpus == {"source": str(folder)}
    assert any(note in line for line in found.lost)


def test_a_dataset_file_of_finetrainers_is_its_root(tmp_path: Path) -> None:
    """SFTTrainer._prepare_dataset of finetrainers f476c37: data_root or dataset_file."""
    found = found_by(tmp_path, "finetrainers", {"dataset_file": "/d", SIZES: ["5x64x96"]})
    assert found.corpus == {"source": "/d/*"}


@pytest.mark.parametrize(
    ("names", "said"), [(["captions.json"], "captions.json"), (["a.tar"], "tar files")]
)
def test_what_else_diffusion_pipe_reads_of_a_folder_is_named(
    tmp_path: Path, names: list[str], said: str
) -> None:
    found = of_kind(
        tmp_path, "diffusion-pipe", "video", folder_of(tmp_path, ["a.mp4", "a.txt", *names])
    )
    assert any(line.startswith("path: ") and said in line for line in found.lost)


@pytest.mark.parametrize("trainer", FLAT)
def test_of_a_folder_that_is_not_here_it_is_said_what_would_be_taken(
    tmp_path: Path, trainer: str
) -> None:
    (line,) = said(of_kind(tmp_path, trainer, "image", Path("/nowhere/at/all")))
    assert "videos (each by its first frame)" in line
    assert line.endswith("Whether it has any is not known: it is not here")
    assert ("without a .txt" in line) == (trainer != "musubi")


def test_a_table_is_not_looked_into(tmp_path: Path) -> None:
    given: Given = {"image_jsonl_file": "/data/a.jsonl", "resolution": [960, 544]}
    assert not said(found_by(tmp_path, "musubi", given))
