"""Families with published vocabularies give what their pipelines give, for 200 captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentcache.encoders.text import build_text_encoder
from latentcache.errors import ConfigError
from tests.encoders.text.test_references import Pair
from tests.tools.texts import checkpoints, vocabularies
from tests.tools.texts.captions import captions
from tests.tools.texts.checkpoints import Parts

pytestmark = [pytest.mark.slow, pytest.mark.long, vocabularies.needs_vocabularies]
PARTS: dict[str, Callable[[Path], Parts]] = {
    "hunyuan_video": vocabularies.hunyuan_video_parts,
    "sdxl": lambda _: vocabularies.sdxl_parts(),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PARTS)
def test_arrays_are_the_references_with_published_vocabularies(
    tmp_path: Path, name: str, dtype: str
) -> None:
    parts = PARTS[name](tmp_path / "tokenizer")
    pair = Pair(name, checkpoints.save(tmp_path / "model", parts), parts, dtype)
    for text in captions(200):
        pair.compare(text)


def test_a_tokenizer_of_the_other_vocabulary_is_refused(tmp_path: Path) -> None:
    parts = dict(vocabularies.sdxl_parts())
    parts["tokenizer"] = vocabularies.llama(tmp_path / "tokenizer")
    model = checkpoints.save(tmp_path / "model", parts)
    with pytest.raises(ConfigError, match="tokenizer"):
        build_text_encoder(
            {"family": "sdxl", "model": str(model), "dtype": "float32"}, torch.device("cpu")
        )
