"""The table in docs/encoders.md matches the specs, and no encoder is left out."""

from __future__ import annotations

import pytest

from latentcache.encoders import KINDS
from latentcache.encoders.diffusers.image_classes import IMAGE_CLASSES
from latentcache.encoders.diffusers.video_classes import VIDEO_CLASSES
from tests.tools import encoder_table
from tests.tools.encoder_table import HEADINGS, PAGE

pytestmark = pytest.mark.long

pytest.importorskip("diffusers", minversion="0.38", reason="diffusers lacks some of the classes")


def test_page_has_the_table_of_the_specs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert encoder_table.page(text) == text, f"{PAGE} is stale. Run: {encoder_table.COMMAND}"


def test_every_kind_and_every_class_of_diffusers_has_a_row() -> None:
    rows = encoder_table.rows()
    assert {row.kind for row in rows} == set(KINDS)
    classes = {row.model_class for row in rows if row.kind.startswith("diffusers_")}
    assert classes == {*VIDEO_CLASSES, *IMAGE_CLASSES}


def test_every_row_says_how_it_is_encoded_and_tested() -> None:
    for row in encoder_table.rows():
        cells = dict(zip(HEADINGS[1:], row.cells, strict=True))
        assert cells["how a clip is encoded"], row
        assert cells["compared with"], row


def test_page_without_a_place_for_the_table_is_told() -> None:
    with pytest.raises(ValueError, match="between which the table goes"):
        encoder_table.page("# Encoders\n")
