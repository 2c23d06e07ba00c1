"""Captions that never end, images that are programs, claims of more clips than there are frames."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from latentcache.corpus.source_table import IMAGES
from latentcache.corpus.sources import MAX_CAPTION_BYTES
from latentcache.decoders import image
from latentcache.errors import ClipError, CorpusError, StorageError
from latentcache.storage.folder import Storage
from tests.tools.corpora import column, make, read

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


# Captions.


@pytest.mark.parametrize("pattern", ["", "/*.mp4", "/a.mp4"], ids=["folder", "glob", "file"])
@pytest.mark.parametrize("what", ["named pipe", "character device", "folder"])
def test_a_caption_is_a_regular_file(tmp_path: Path, what: str, pattern: str) -> None:
    make(tmp_path, "a.mp4")
    text = tmp_path / "a.txt"
    if what == "named pipe":
        os.mkfifo(tmp_path / "pipe")
        text.symlink_to(tmp_path / "pipe")
    elif what == "character device":
        text.symlink_to("/dev/zero")
    else:
        text.mkdir()
    if what == "folder" or (pattern == "/a.mp4" and not text.is_file()):
        assert column(read(f"{tmp_path}{pattern}"), "caption") == [None]
        return
    with pytest.raises(
        CorpusError, match=rf"caption file .*/a\.txt is no regular file but a {what}"
    ):
        read(f"{tmp_path}{pattern}")


@pytest.mark.parametrize("pattern", ["", "/*.mp4"], ids=["folder", "glob"])
@pytest.mark.parametrize("what", ["named pipe", "socket"])
def test_a_caption_that_is_itself_special_ends_as_one_that_is_linked_to(
    tmp_path: Path, what: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.mp4")
    if what == "named pipe":
        os.mkfifo(tmp_path / "a.txt")
    else:
        monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("a.txt")
    with pytest.raises(CorpusError, match=rf"a\.txt is no regular file but a {what}"):
        read(f"{tmp_path}{pattern}")


@pytest.mark.parametrize("pattern", ["", "/*.mp4"], ids=["folder", "glob"])
@pytest.mark.parametrize("target", ["nowhere", "b.txt", "a.mp4/b.txt", "x" * 300])
def test_a_caption_that_is_a_link_to_no_file_is_named_with_what_to_do(
    tmp_path: Path, target: str, pattern: str
) -> None:
    """A link to itself, one through a file, and one to a name that none can have as one to nothing."""
    make(tmp_path, "a.mp4", "b.mp4", "a.txt")
    (tmp_path / "b.txt").symlink_to(target)
    with pytest.raises(
        CorpusError, match=r"caption file .*/b\.txt .* broken link\. Restore it, or remove it"
    ):
        read(f"{tmp_path}{pattern}")


def test_a_caption_that_cannot_be_read_now_is_no_broken_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.mp4", "a.txt")

    def sick(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("latentcache.storage.source_files._read_start", sick)
    with pytest.raises(StorageError, match=r"cannot read .*Input/output error"):
        read(tmp_path)


def test_caption_files_that_are_special_are_shown_with_their_number(tmp_path: Path) -> None:
    make(tmp_path, *(f"{letter}.mp4" for letter in "abcde"))
    for letter in "abcde":
        os.mkfifo(tmp_path / f"{letter}.txt")
    with pytest.raises(
        CorpusError, match=r"/a\.txt is .*; 5 caption files .*/b\.txt, .*/c\.txt\. Rem"
    ):
        read(tmp_path)


def test_special_files_of_a_folder_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "notes.md")
    for name in ("pipe.mp4", "x/other.mp4", "b.txt", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    corpus = read(tmp_path)
    assert column(corpus, "name") == ["a.mp4"]
    assert corpus.ignored == {".md": 1, "no regular file": 3}


@pytest.mark.parametrize("pattern", ["", "/*.mp4", "/a.mp4"], ids=["folder", "glob", "file"])
def test_a_caption_is_bounded(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "a.mp4")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(CorpusError, match=r"caption file .*/a\.txt is larger than 1\.0 MiB"):
        read(f"{tmp_path}{pattern}")
    (tmp_path / "a.txt").write_text("x" * MAX_CAPTION_BYTES)
    assert column(read(f"{tmp_path}{pattern}"), "caption") == ["x" * MAX_CAPTION_BYTES]


@pytest.mark.parametrize("pattern", ["", "/*.mp4", "/a.mp4"], ids=["folder", "glob", "file"])
def test_a_remote_caption_is_bounded_before_it_is_read(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(f"memory://{tmp_path.name}")
    store.write("a.mp4", b"")
    store.write("a.txt", b"x" * (MAX_CAPTION_BYTES + 1))
    read_urls: list[str] = []
    monkeypatch.setattr(
        "latentcache.corpus.sources.read_many", lambda urls, *_: read_urls.extend(urls) or [b""]
    )
    with pytest.raises(CorpusError, match=r"caption file .*a\.txt is larger than"):
        read(f"{store.url}{pattern}")
    assert not read_urls


def test_a_message_names_a_file_in_one_line(tmp_path: Path) -> None:
    r"""What follows \n in a name would look like a message of its own."""
    make(tmp_path, "a\nverified: all is well.mp4")
    caption = tmp_path / "a\nverified: all is well.txt"
    caption.write_bytes(b"x" * (MAX_CAPTION_BYTES + 1))
    with pytest.raises(CorpusError, match=r"a\\nverified: all is well\.txt is larger than") as told:
        read(tmp_path)
    assert str(told.value).isprintable()


# Images.


@pytest.mark.parametrize("suffix", sorted(set(IMAGES) - {"heic", "heif", "jxl"}))
def test_an_image_is_never_what_only_pillow_finds(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(EPS)
    Image.init()
    with pytest.raises(ClipError, match="no image of these formats: JPEG, PNG") as refused:
        image.Reader(str(path))
    assert refused.value.reason == "unreadable"
    assert not started


@pytest.mark.parametrize("name", ["DIB", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA"])
def test_a_format_that_is_of_no_suffix_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, format=name)
    with pytest.raises(ClipError, match="no image of these formats"):
        image.Reader(str(path))


@pytest.mark.parametrize("called", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_an_image_under_the_suffix_of_another_is_read(tmp_path: Path, called: str) -> None:
    """Corpora from the web are full of them."""
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(pixels).save(tmp_path / "x.bmp")
    shutil.move(tmp_path / "x.bmp", tmp_path / called)
    frame = next(image.Reader(str(tmp_path / called)).frames(np.zeros(1, np.int64)))
    np.testing.assert_array_equal(frame, pixels)
