"""What people have: suffixes of cameras and phones, and files that have none."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from latentcache.corpus.content import HEAD_BYTES, kind_of
from latentcache.decoders import image
from latentcache.decoders.streams import open_video
from latentcache.errors import ClipError, CorpusError
from latentcache.storage.folder import Storage
from tests.tools.bad_videos import encode
from tests.tools.corpora import column, make, read

#: By suffix: the container that FFmpeg writes, and the codec.
VIDEOS = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4",
    "ts": "libx264", "m2ts": "libx264", "mts": "libx264", "flv": "flv", "f4v": "libx264",
    "wmv": "wmv2", "asf": "wmv2", "vob": "mpeg2video", "mpg": "mpeg2video",
    "gif": "gif", "3gp": "libx264",
}  # fmt: skip
IMAGES = ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff"]
if features.check("avif"):
    IMAGES.append("avif")


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"a.{suffix}"
    if suffix in VIDEOS:
        pix_fmt = "rgb8" if suffix == "gif" else "yuv420p"
        return encode(path, VIDEOS[suffix], pix_fmt=pix_fmt)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [*VIDEOS, *IMAGES])
def test_a_file_is_known_by_its_suffix_and_by_its_content(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    kind = "video" if suffix in VIDEOS else "image"
    assert column(read(tmp_path), "kind") == [kind]
    assert kind_of(path.read_bytes()[:HEAD_BYTES]) == kind
    bare = path.rename(tmp_path / "bare")
    if kind == "video":
        open_video(str(bare))[0].close()
    else:
        image.Reader(str(bare))


@pytest.mark.parametrize(
    "head",
    [b"", b"# README", b"<html>", b"%PDF-1.7", b"PK\x03\x04", b"RIFF1234WAVE", b"\x7fELF", b"BMWs"],
)
def test_what_is_neither_is_told(head: bytes) -> None:
    assert kind_of(head) is None


def test_files_without_a_suffix_are_counted_unless_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "README", "empty")
    (tmp_path / "README").write_text("# nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "sub.png")
    (tmp_path / "sub.png").rename(tmp_path / "picture")
    (tmp_path / "picture.txt").write_text("of a square")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").symlink_to(tmp_path / "pipe")
    assert read(tmp_path).ignored == {".txt": 1, "no suffix": 4, "no regular file": 1}
    asked = read(tmp_path, no_suffix="by_content")
    assert column(asked, "name") == ["a.mp4", "picture"]
    assert column(asked, "kind") == ["video", "image"]
    assert column(asked, "caption") == [None, "of a square"]
    assert asked.ignored == {"no suffix": 3, "no regular file": 1}


def test_remote_files_are_told_by_content(tmp_path: Path) -> None:
    store = Storage(f"memory://{tmp_path.name}-content")
    store.write("film", b"\x1a\x45\xdf\xa3" + bytes(600))
    store.write("notes", b"nothing")
    asked = read(store.url, no_suffix="by_content")
    assert column(asked, "name") == ["film"]
    with pytest.raises(CorpusError, match=r"no suffix \(2\)"):
        read(store.url)


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [
        ("heic", "pillow_heif", "heif"),
        ("heif", "pillow_heif", "heif"),
        ("jxl", "pillow_jxl", "jxl"),
    ],
)
def test_a_format_that_another_package_reads_names_the_extra(
    tmp_path: Path, suffix: str, package: str, extra: str
) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    make(tmp_path, f"a.{suffix}")
    assert column(read(tmp_path), "kind") == ["image"]
    with pytest.raises(ClipError, match=rf"{package}, which is not installed. Run: .*{extra}"):
        image.Reader(str(tmp_path / f"a.{suffix}"))


HEADS = {
    "heic": b"\0\0\0\x18ftypheic" + bytes(600),
    "mif1": b"\0\0\0\x18ftypmif1" + bytes(600),
    "jxl": b"\xff\x0a" + bytes(600),
    "jxl_in_a_box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(600),
}


@pytest.mark.parametrize("name", HEADS)
def test_without_a_suffix_too_the_extra_is_named(tmp_path: Path, name: str) -> None:
    extra = "jxl" if name.startswith("jxl") else "heif"
    if importlib.util.find_spec(f"pillow_{extra}"):
        pytest.skip(f"pillow_{extra} is installed")
    (tmp_path / name).write_bytes(HEADS[name])
    assert column(read(tmp_path, no_suffix="by_content"), "kind") == ["image"]
    with pytest.raises(ClipError, match=rf"which is not installed. Run: .*{extra}"):
        image.Reader(str(tmp_path / name))
