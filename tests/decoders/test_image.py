"""Images: what Pillow does not know is not damaged, and what is damaged is."""

from __future__ import annotations

import errno
import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import ExifTags, Image

from latentcache.decoders import image
from latentcache.decoders.image_heads import HEAD_BYTES, webp_shape
from latentcache.decoders.ranged import RangedPath
from latentcache.decoders.trouble import ProcessTroubleError
from latentcache.errors import ClipError
from latentcache.storage.source_cache import CachedSource
from tests.tools.bad_videos import picture

#: Variants of BMP that Pillow refuses: where in the header, and what. They are whole files.
VARIANTS = {
    "header_of_os2": (14, struct.pack("<I", 50)),
    "two_bits": (28, struct.pack("<H", 2)),
    "jpeg_inside": (30, struct.pack("<I", 4)),
    "odd_bit_fields": (30, struct.pack("<I", 3)),
}


def write_bmp(path: Path) -> bytearray:
    Image.fromarray(picture()).save(path, format="BMP")
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_that_pillow_does_not_know_is_not_called_damaged(
    tmp_path: Path, name: str
) -> None:
    data, (at, value) = write_bmp(tmp_path / "i.bmp"), VARIANTS[name]
    data[at : at + len(value)] = value
    (tmp_path / "i.bmp").write_bytes(data)
    with pytest.raises(ClipError, match=r"cannot read this variant of the format: .*Convert") as e:
        image.Reader(str(tmp_path / "i.bmp"))
    assert e.value.reason == "unreadable"


def test_an_image_that_ends_early_is_damaged(tmp_path: Path) -> None:
    data = write_bmp(tmp_path / "i.bmp")
    assert np.array_equal(
        next(image.Reader(str(tmp_path / "i.bmp")).frames(np.zeros(1, np.int64))), picture()
    )
    (tmp_path / "i.bmp").write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError, match="the image is damaged") as e:
        image.Reader(str(tmp_path / "i.bmp"))
    assert e.value.reason == "corrupt"


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (300, 17), (16383, 2)])
@pytest.mark.parametrize("kind", ["lossy", "lossless", "animated"])
def test_the_first_bytes_of_a_webp_say_its_shape(size: tuple[int, int], kind: str) -> None:
    images = [Image.new("RGB", size), Image.new("RGB", size, "red")]
    file = io.BytesIO()
    images[0].save(
        file,
        format="WEBP",
        lossless=kind == "lossless",
        save_all=kind == "animated",
        append_images=images[1:] if kind == "animated" else [],
    )
    assert webp_shape(file.getvalue()[:HEAD_BYTES]) == size[::-1]
    assert webp_shape(ASTRAY["one_byte"][:HEAD_BYTES]) is None


#: The levels of a picture in grey, of 0 to 1: dark, and brighter to the right.
LEVELS = np.tile(np.array([0, 1 / 3, 1 / 2, 1]), (4, 2))


def grey_tiff(order: str, bits: int, *, begins_with_white: bool) -> bytes:
    """A TIFF of LEVELS, which Pillow cannot write. order: of bytes, II or MM."""
    sign = {"II": "<", "MM": ">"}[order]
    most = (1 << bits) - 1
    values = np.rint(LEVELS * most).astype(int)
    values = most - values if begins_with_white else values
    if bits == 16:
        data = values.astype(f"{sign}u2").tobytes()
    else:
        text = "".join(f"{value:0{bits}b}" for value in values.flat)
        data = int(text, 2).to_bytes(len(text) // 8)
    height, width = values.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: int(not begins_with_white),
        273: 8, 277: 1, 278: height, 279: len(data),
    }  # fmt: skip
    directory = b"".join(struct.pack(f"{sign}HHIHH", tag, 3, 1, n, 0) for tag, n in tags.items())
    head = struct.pack(f"{sign}2sHI", order.encode(), 42, 8 + len(data))
    return head + data + struct.pack(f"{sign}H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize("begins_with_white", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_grey_is_as_bright_as_it_is_stored_or_refused(
    tmp_path: Path, order: str, bits: int, *, begins_with_white: bool
) -> None:
    path = tmp_path / "i.tif"
    path.write_bytes(grey_tiff(order, bits, begins_with_white=begins_with_white))
    if (bits == 12 and (order, begins_with_white) != ("II", False)) or (
        bits == 16 and (order, begins_with_white) == ("MM", True)
    ):
        with pytest.raises(ClipError, match=r"begins as TIFF, and what follows is .*a variant"):
            image.Reader(str(path))
        return
    (pixels,) = image.Reader(str(path)).frames(np.zeros(1, np.int64))
    expected = np.rint(LEVELS * ((1 << bits) - 1)) / ((1 << bits) - 1)
    np.testing.assert_allclose(pixels / 255, np.repeat(expected[..., None], 3, 2), atol=1 / 255)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_compressed_grey_that_begins_with_white_is_no_negative(
    tmp_path: Path, compression: str, orientation: int
) -> None:
    values = np.rint((1 - LEVELS) * 65535).astype(np.uint16)
    tags = {ExifTags.Base.PhotometricInterpretation: 0, ExifTags.Base.Orientation: orientation}
    Image.fromarray(values).save(tmp_path / "i.tif", compression=compression, tiffinfo=tags)
    (pixels,) = image.Reader(str(tmp_path / "i.tif")).frames(np.zeros(1, np.int64))
    shown = pixels[..., 0] if orientation == 1 else np.rot90(pixels[..., 0])
    np.testing.assert_allclose(shown / 255, LEVELS, atol=1 / 255)


def test_grey_of_16_bits_of_a_png_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.rint(LEVELS * 65535).astype(np.uint16)).save(tmp_path / "i.png")
    (pixels,) = image.Reader(str(tmp_path / "i.png")).frames(np.zeros(1, np.int64))
    np.testing.assert_allclose(pixels[..., 0] / 255, LEVELS, atol=1 / 255)


def big_tiff(offset: int) -> bytes:
    """A TIFF of 64 bits that begins with where its first directory is."""
    return b"II+\0\x08\0\0\0" + struct.pack("<Q", offset) + bytes(64)


def tiff_of_other_width() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, format="TIFF")
    return b"II+" + file.getvalue()[3:]


ASTRAY = {
    "one_byte": tiff_of_other_width(),
    **{f"offset_2**{bits}": big_tiff(1 << bits) for bits in (40, 62, 63)},
    "offset_-1": big_tiff((1 << 64) - 1),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("name", ASTRAY)
def test_an_image_that_points_to_where_nothing_can_be_read_is_the_files_fault(
    tmp_path: Path, name: str
) -> None:
    """The system refuses to seek there, as it refuses to read a disk that fails."""
    (tmp_path / "i.tif").write_bytes(ASTRAY[name])
    for read in (image.Reader, image.shown_shape):
        with pytest.raises(ClipError) as caught:
            read(str(tmp_path / "i.tif"))
        assert caught.value.reason in ("unreadable", "corrupt")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "AVIF", "WEBP"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EOVERFLOW, errno.ESTALE])
def test_a_read_that_fails_is_no_fault_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    path = tmp_path / "i"
    Image.fromarray(picture()).save(path, format=kind)

    class FailingFile(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("latentcache.decoders.image.io.FileIO", FailingFile)
    with pytest.raises(ProcessTroubleError, match=os.strerror(number)) as caught:
        image.Reader(str(path))
    assert caught.value.lacks == "source"


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_cache_of_sources_that_cannot_be_read_is_no_fault_of_an_image(number: int) -> None:
    class FailingSource:
        path, size = "i.tif", 1000

        def has(self, *_: int) -> bool:
            return True

        def read(self, *_: int) -> bytes:
            raise OSError(number, os.strerror(number))

    with pytest.raises(ProcessTroubleError, match=os.strerror(number)):
        image.shown_shape(RangedPath(cast("CachedSource", FailingSource())))


def test_a_length_that_is_damaged_takes_no_memory(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "i.png")
    data = bytearray((tmp_path / "i.png").read_bytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = b"\x7f\xff\xff\xff"
    (tmp_path / "i.png").write_bytes(data)
    tracemalloc.start()
    try:
        (pixels,) = image.Reader(str(tmp_path / "i.png")).frames(np.zeros(1, np.int64))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert np.array_equal(pixels, picture())  # all of which comes before Pillow reads to the end
