"""docs/text-encoders.md says of each family what its encoder gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcache.encoders.text import FAMILIES, JOINT_FAMILIES, describe_text_encoder
from latentcache.encoders.text.registry import family_module
from latentcache.encoders.towers import TOWERS
from tests.tools.doc_blocks import blocks
from tests.tools.texts.references import CASES

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "docs" / "text-encoders.md"
#: Cases whose family has other arrays than the page's first ones.
SMALLER = {"ltx2": {"audio"}}


def rows() -> Iterator[tuple[str, str, int, str]]:
    """Each array of the page's table: its family, name, number of axes, and padding."""
    family = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        named = re.match(r"`(\w+)`", cells[0])
        family = named.group(1) if named else family
        array = re.fullmatch(r"`(\w+)` \[([^\]]*)\]", cells[1]) if len(cells) == 5 else None
        if array is not None and family in FAMILIES:
            yield family, array.group(1), array.group(2).count(",") + 1, cells[2].replace("`", "")


@pytest.mark.parametrize("name", CASES)
def test_the_page_has_the_arrays_of_a_family(made: Callable[[str], Path], name: str) -> None:
    model = made(name)
    raw = {**CASES[name].raw, "model": str(model), "dtype": "float32"}
    arrays = describe_text_encoder(raw).arrays
    told = {array: facts for family, array, *facts in rows() if family == raw["family"]}
    expected = {
        array: [
            len(made.shape),
            (made.padding or "") + (", left" if made.side == "left" and made.ragged else ""),
        ]
        for array, made in arrays.items()
    }
    assert {key: told[key] for key in told if key not in SMALLER.get(name, ())} == expected


def test_the_pages_code_runs(made: Callable[[str], Path]) -> None:
    model = made("wan")
    names: dict[str, Any] = {}
    for block in blocks(PAGE, "python"):
        exec(block.text.replace("/models/Wan2.1-T2V-1.3B-Diffusers", str(model)), names)
    assert names["encoded"].tokens == len(names["encoded"].arrays["states"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_names_the_source_of_a_family(family: str) -> None:
    pipelines = re.findall(r"\w+(?:Pipeline|Connectors)\b", family_module(family).Encoder.source)
    text = PAGE.read_text(encoding="utf-8")
    assert f"| `{family}` |" in text
    assert [name for name in pipelines if f"`{name}`" not in text] == []


def test_the_page_names_the_families_of_texts_with_images() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [family for family in JOINT_FAMILIES if f"| `{family}` |" not in text] == []


def test_the_page_names_the_towers() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [tower for tower in TOWERS if f"| `{tower}` |" not in text] == []
