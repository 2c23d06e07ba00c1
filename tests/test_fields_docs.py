"""The code of docs/fields.md runs, on a cache with the fields that it names."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from tests.tools.doc_blocks import PAGES, blocks
from tests.tools.fields import add, cache_of, text_field
from tests.tools.planned import FAILED

CAPTIONS = [f"caption {n}" for n in range(9)]


@pytest.mark.slow
def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field(), clip=text_field(padding="mask"))
    seen: list[tuple[torch.Tensor, ...]] = []
    names: dict[str, Any] = {"latentcache": latentcache, "train": lambda *some: seen.append(some)}
    for block in blocks(PAGES["docs/fields.md"], "python"):
        text = re.sub(r'"s3://[^"]*"', repr(cache.storage.url), block.text)
        if "def build(" in text:
            add_own(cache, text, monkeypatch)
        else:
            exec(compile("\n" * block.line + text, "docs/fields.md", "exec"), names)
    assert sum(len(some[0]) for some in seen) == len(CAPTIONS) - len(FAILED)
    assert {some[1].shape[1:] for some in seen} == {(32, 8)}


def add_own(cache: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the encoder of the page as a plug-in."""
    module = types.ModuleType("my_package.my_text")
    exec(text, vars(module))
    monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.my_text", module)
    add(cache, own={"kind": "text", "family": "my_package.my_text"})
    sample = latentcache.open_cache(cache.storage.url)[0]
    assert sample["own"][0, 0] == ord(sample["caption"][0]) % 97
