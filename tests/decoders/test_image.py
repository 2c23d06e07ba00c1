"""Images: what Pillow does not know is not damaged, and what is damaged is."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentcache.decoders import image
from latentcache.errors import ClipError
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
