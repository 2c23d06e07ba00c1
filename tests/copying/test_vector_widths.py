"""Rows of several caches in one: what cannot be in one batch is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.caches import make_config, run_inline

pytestmark = pytest.mark.usefixtures("kept_pools")

OK, REFUSED = 0, 2


def make_cache(folder: Path, name: str, *numbers: float) -> Path:
    """A cache of one picture with a vector per frame."""
    own = folder / name
    own.mkdir()
    Image.new("RGB", (32, 32)).save(own / f"{name}.png")
    row = {"image": f"{name}.png", "act": [numbers]}
    (own / "table.jsonl").write_text(json.dumps(row) + "\n")
    corpus = {"columns": {"image": "image"}, "per_frame": ["act"]}
    clips = {"frames": 1, "size": [32, 32]}
    config = make_config(own, own / "table.jsonl", f"{own}/cache", corpus=corpus, clips=clips)
    status, printed = run_inline("precompute", config)
    assert status == OK, printed
    return own / "cache"


@pytest.mark.slow
def test_caches_with_vectors_of_other_lengths_are_not_merged(tmp_path: Path) -> None:
    one, two = make_cache(tmp_path, "a", 1.0, 2.0), make_cache(tmp_path, "b", 3.0, 4.0)
    three = make_cache(tmp_path, "c", 1.0, 2.0, 3.0)
    assert run_inline("merge", one, two, "-o", tmp_path / "fine")[0] == OK
    status, printed = run_inline("merge", one, two, three, "-o", tmp_path / "mixed")
    assert status == REFUSED
    assert "the vectors of act, a column of corpus.per_frame, have 2 and 3 numbers" in printed
    assert not (tmp_path / "mixed").exists()
