"""kill -9 of drivers, actors and decoding processes: after resume, nothing differs or is written twice.

`python -m tests.chaos` does the same for as long as you like.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos import run_with_kills
from tests.tools.caches import assert_same_cache, committed, make_config, make_corpus, run_job


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("kill") / "corpus", 12, frames=41)


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder / "cache"


@pytest.mark.parametrize(
    ("runner", "seed", "victims"),
    [
        pytest.param("local", 1, ["driver", "decoder"] * 2 + ["driver"], marks=pytest.mark.long),
        ("local", 2, ["decoder", "driver"]),
        pytest.param("ray", 3, ["actor", "decoder", "driver"], marks=pytest.mark.long),
        pytest.param("ray", 4, ["driver", "actor", "actor"], marks=pytest.mark.long),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    corpus: Path, clean: Path, tmp_path: Path, runner: str, seed: int, victims: list[str]
) -> None:
    cache = tmp_path / "cache"
    config = make_config(tmp_path, corpus, str(cache), run={"runner": runner})
    total = len(committed(clean))
    kills = run_with_kills(config, cache, random.Random(seed), victims, total)
    assert kills["driver"] >= 1
    assert_same_cache(cache, clean)
