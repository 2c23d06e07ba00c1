"""Fields come along when clips are copied: by key, each clip has the values that it had before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentcache
from latentcache.config.fields import parse_field
from latentcache.core.dtypes import as_numpy, numpy_dtype
from latentcache.format.fields.commit import Sample, commit_field_shard
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.snapshot import publish_field
from latentcache.inspecting.verify import verify
from latentcache.planning.fields.planned import PlannedField, create_field, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.storage.folder import Storage
from tests.tools.caches import run_inline
from tests.tools.copied import reopened
from tests.tools.encoders.hashed_text import COUNTED
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field

FORMATS = ("zarr", "parquet")
LENGTH = 128  # of which 64 are compressed together
TEXT = {"length": LENGTH, "pooled": True}
Values = dict[str, dict[str, bytes | None]]


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def values_of(path: Path, names: Sequence[str]) -> Values:
    """What a reader gets of each clip, by key: the bytes of each field's arrays, None where it has none."""
    cache = latentcache.open_cache(str(path))
    return {str(cache[n]["key"]): _values(cache, n, names) for n in range(len(cache))}


def _values(cache: latentcache.Cache, n: int, names: Sequence[str]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for name in names:
        field = cache.field(name)
        for key in field.arrays:
            try:
                found[key] = as_numpy(cache.stored_samples([n])[0][key]).tobytes()
            except KeyError:
                found[key] = None
    return found


@pytest.fixture(name="counted")
def counted_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has a line per text that was encoded."""
    path = tmp_path / "texts"
    monkeypatch.setenv(COUNTED, str(path))
    return path


def encoded(counted: Path) -> list[str]:
    lines = [line for line in counted.read_text().splitlines() if line] if counted.exists() else []
    counted.unlink(missing_ok=True)
    return sorted(lines)


def make_grown(folder: Path, side: str = "right", **cache: Any) -> PlannedCache:
    """Three short shards with a text field: one text updated, one changed since, two clips without values.

    One text fails.
    """
    planned = cache_of(folder, [f"caption {n % 3}" for n in range(3)], shard_clips=4, **cache)
    planned = grow(planned, ["CLIP fails", "more " * 20])
    add(planned, status=3, umt5=text_field(**TEXT, side=side))
    planned = relabel(planned, {"v0#0": "updated"})
    add(planned, "--update", status=3, umt5=text_field(**TEXT, side=side))
    planned = relabel(planned, {"v0#0": "updated", "v1#0": "changed since"})
    return grow(planned, ["late", "later"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_text_field_is_the_same_after_compacting(
    shard_format: str, side: str, tmp_path: Path, counted: Path
) -> None:
    make_grown(tmp_path, side, format=shard_format)
    encoded(counted)
    before = values_of(tmp_path / "cache", ["umt5"])
    printed = run("compact", tmp_path / "cache", "--below=1")
    assert "3 clips of umt5 are still to be encoded" in printed, printed
    assert values_of(tmp_path / "cache", ["umt5"]) == before
    assert encoded(counted) == []
    run("resume", tmp_path / "cache", "run.runner=local", status=3)
    assert encoded(counted) == ["changed since", "late", "later"]
    after = values_of(tmp_path / "cache", ["umt5"])
    changed = {key for key in before if after[key] != before[key]}
    assert after["v1#0"]["umt5"] == padded("changed since", LENGTH, side=side).tobytes()
    assert changed == {"v1#0", "g4_0#0", "g4_1#0"}
