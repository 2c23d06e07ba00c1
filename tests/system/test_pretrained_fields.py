"""Fields of real encoders, from the command line to the batch, against diffusers' pipelines."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.planning.planned import PlannedCache
from tests.tools.caches import read_files, run_inline
from tests.tools.fields import add, cache_of, relabel
from tests.tools.texts.captions import KINDS
from tests.tools.texts.checkpoints import PARTS
from tests.tools.texts.references import CASES, pipeline, saved
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here

pytestmark = pytest.mark.slow

LENGTH = 512
#: The far too long one is left to the families' own tests, which are the slower for it.
CAPTIONS = [caption for caption in KINDS[:12] if len(caption) < 10 * LENGTH]


@pytest.fixture(scope="module", name="model")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Wan checkpoint: umT5 and its tokenizer."""
    return saved("wan", tmp_path_factory.mktemp("wan"))[0]


def wan_field(model: Path, **settings: Any) -> dict[str, Any]:
    return {"kind": "text", "family": "wan", "model": str(model), "missing": "empty", **settings}


def encoded_by_diffusers(model: Path, captions: Sequence[str]) -> list[torch.Tensor]:
    """States [512, D] in bfloat16 of each caption by itself, as Wan's pipeline gives them."""
    wan = pipeline(CASES["wan"], model, PARTS["wan"](), torch.bfloat16)
    with torch.inference_mode():
        return [
            wan.encode_prompt(
                caption,
                do_classifier_free_guidance=False,
                max_sequence_length=LENGTH,
                device="cpu",
            )[0][0]
            for caption in captions
        ]


def states_of(cache: PlannedCache) -> dict[str, torch.Tensor]:
    opened = latentcache.open_cache(cache.storage.url)
    return {opened[n]["key"]: opened[n]["umt5"] for n in range(len(opened))}


def test_clips_whose_quoted_words_are_cut_are_told(tmp_path: Path) -> None:
    model, _ = saved("hunyuan_video15", tmp_path / "model")
    cache = cache_of(tmp_path, ["a fox", f'A sign says "{"open " * 20}"'])
    field = {"kind": "text", "family": "hunyuan_video15", "model": str(model), "glyph_length": 50}
    printed = add(cache, hunyuan=field)
    assert "1 clips have more text than the 1000 or 50 (glyphs) tokens" in printed
    assert "1 with lost tokens" in run_inline("status", cache.storage.url)[1]


def test_states_in_samples_and_batches_are_those_of_diffusers_bit_for_bit(
    tmp_path: Path, model: Path
) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=wan_field(model))
    expected = dict(
        zip(
            [f"v{n}#0" for n in range(len(CAPTIONS))],
            encoded_by_diffusers(model, CAPTIONS),
            strict=True,
        )
    )
    found = states_of(cache)
    assert all(torch.equal(states, expected[key]) for key, states in found.items())
    loader = latentcache.LatentLoader(cache.storage.url, batch_size=4, fields=["umt5"])
    rows = [row for b in loader for row in zip(b["key"], b["umt5"], b["umt5_tokens"], strict=True)]
    assert {key for key, *_ in rows} == found.keys()
    for key, states, tokens in rows:
        assert torch.equal(states, expected[key])
        assert not states[tokens:].any()
        assert states[:tokens].any(dim=1).all()
    null = latentcache.open_cache(cache.storage.url).field("umt5").nulls["null"]
    (empty,) = encoded_by_diffusers(model, [""])
    np.testing.assert_array_equal(null.arrays[0], as_numpy(empty)[: null.tokens])


def test_a_changed_caption_gets_the_states_of_diffusers_too(tmp_path: Path, model: Path) -> None:
    cache = cache_of(tmp_path, ["A red fox.", "A grey wolf."])
    add(cache, umt5=wan_field(model))
    cache = relabel(cache, {"v1#0": "Two old boats."})
    assert run_inline("resume", cache.storage.url, "run.runner=local")[0] == 0
    expected = encoded_by_diffusers(model, ["A red fox.", "Two old boats."])
    assert all(map(torch.equal, states_of(cache).values(), expected))


def one_error(printed: str) -> str:
    """All that a run printed, which is one error."""
    assert "Traceback" not in printed
    assert len(re.findall(r"^\w+Error: ", printed, re.MULTILINE)) == 1, printed
    return printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "wann"}, "unknown family 'wann'. Did you mean 'wan'?"),
        ({"model": "/no/such/folder"}, "there is no folder '/no/such/folder/text_encoder'"),
        ({"lenght": 512}, "Did you mean 'length'"),
        ({"model": None}, "needs `model`"),
    ],
)
def test_wrong_settings_of_a_family_give_one_error(
    tmp_path: Path, model: Path, settings: dict[str, Any], message: str
) -> None:
    cache = cache_of(tmp_path, ["a fox"])
    before = read_files(Path(cache.storage.url))
    assert message in one_error(add(cache, status=2, umt5={**wan_field(model), **settings}))
    assert read_files(Path(cache.storage.url)) == before


def test_a_missing_package_gives_one_error_that_says_what_to_install(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, ["a fox"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = one_error(add(cache, status=2, umt5=wan_field(model)))
    assert "'transformers', which is not installed" in error
    assert "pip install" in error
