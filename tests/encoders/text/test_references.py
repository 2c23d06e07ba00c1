"""Every family's arrays equal what its pipeline of diffusers gives, bit for bit, one caption at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.core.fields import FieldArray
from latentcache.encoders.text import FAMILIES, build_text_encoder
from latentcache.encoders.text.protocol import EncodedText, TextArray, TextEncoder
from tests.tools.texts import checkpoints
from tests.tools.texts.captions import captions
from tests.tools.texts.checkpoints import Parts
from tests.tools.texts.references import CASES, Padded, pipeline

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16")


class Pair:
    """A family's encoder and its reference, on the same files."""

    def __init__(self, name: str, model: Path, parts: Parts, dtype: str) -> None:
        self.case = CASES[name]
        # bfloat16 is slow on CPUs, and the order of work is that of float32.
        self.num_quick = min(self.case.quick, 10 if dtype == "float32" else 5)
        raw = {**self.case.raw, "model": str(model), "dtype": dtype}
        self.ours: TextEncoder = build_text_encoder(raw, CPU)
        self.theirs: Any = pipeline(self.case, model, parts, getattr(torch, dtype))

    def compare(self, text: str) -> EncodedText:
        encoded = self.ours.encode(text)
        with torch.inference_mode():
            expected = self.case.make(self.theirs, text)
        assert list(encoded.arrays) == list(expected)
        assert list(self.ours.arrays) == list(expected)
        for name, array in self.ours.arrays.items():
            assert_same(padded(encoded.arrays[name], array), expected[name], array)
        return encoded


def padded(values: torch.Tensor, array: TextArray) -> Padded:
    """Pad back what is stored, by the rule of its padding, as a reader does."""
    if not array.ragged:
        return Padded(values)
    missing = array.shape[0] - len(values)
    zeros = values.new_zeros(missing, *values.shape[1:])
    own, not_own = torch.ones(len(values), dtype=torch.bool), torch.zeros(missing, dtype=torch.bool)
    order = slice(None, None, -1 if array.side == "left" else 1)
    mask = torch.cat([own, not_own][order]) if array.padding == "mask" else None
    return Padded(torch.cat([values, zeros][order]), mask)


def assert_same(ours: Padded, theirs: Padded, array: TextArray | FieldArray) -> None:
    assert ours.values.dtype == theirs.values.dtype
    assert (ours.mask is None) == (theirs.mask is None)
    if ours.mask is None or theirs.mask is None:
        assert torch.equal(ours.values, theirs.values)
        return
    # Pipelines that pad to the longest give one text no padding: what is past it, is masked.
    rows = len(theirs.mask)
    assert rows <= array.shape[0]
    assert torch.equal(ours.mask[:rows], theirs.mask)
    assert not ours.mask[rows:].any()
    assert torch.equal(ours.values[:rows][theirs.mask], theirs.values[theirs.mask])
    assert not ours.values[~ours.mask].any()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, dtype), marks=[pytest.mark.long] if dtype != "float32" else [])
        for name in CASES
        for dtype in DTYPES
    ],
    ids="-".join,
)
def pair(request: pytest.FixtureRequest, saved_case: Callable[[str], tuple[Path, Parts]]) -> Pair:
    name, dtype = request.param
    return Pair(name, *saved_case(name), dtype)


def test_every_family_has_a_reference() -> None:
    assert {case.raw["family"] for case in CASES.values()} == {*FAMILIES} - {"transformers"}


def test_arrays_are_the_references_bit_for_bit(pair: Pair) -> None:
    encoded = [pair.compare(text) for text in captions(pair.num_quick)]
    lost = [one.lost_tokens > 0 for one in encoded]
    assert any(lost) or pair.num_quick < 4  # the fourth is far too long
    assert not all(lost)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_arrays_are_the_references_for_200_captions(pair: Pair) -> None:
    for text in captions(200):
        pair.compare(text)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("A sign says “" + "天" * 100 + "”.", 300), ('A sign says "' + "a" * 240 + '".', 240)],
)
def test_quoted_words_that_are_cut_are_counted(
    saved_case: Callable[[str], tuple[Path, Parts]], text: str, num_bytes: int
) -> None:
    pair = Pair("hunyuan_video15", *saved_case("hunyuan_video15"), "float32")
    encoded = pair.compare(text)
    quoted = num_bytes + len('Text "". ') + 1  # bytes, and the end of text
    assert encoded.lost_tokens == max(0, quoted - 256)
    assert len(encoded.arrays["glyphs"]) == min(quoted, 256)


def test_kandinsky_takes_characters_off_a_text_that_is_too_long(tmp_path: Path) -> None:
    """Where tokens are long, that takes more than the length would, and splits a word."""
    word = "a" * 14
    parts = dict(checkpoints.kandinsky5_parts())
    parts["tokenizer"].add_tokens([word])
    parts["text_encoder"] = checkpoints.qwen_model(parts["tokenizer"])
    pair = Pair("kandinsky5", checkpoints.save(tmp_path, parts), parts, "float32")
    pair.compare(word * 600)
