"""Before a run goes on: the sources of what is left to encode are those that were planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.core.records import ShardId
from latentcache.errors import RecipeMismatchError
from latentcache.format.manifest import refresh
from latentcache.planning import changed_sources
from latentcache.planning.changed_sources import check_sources
from latentcache.planning.known import KnownCache, retire
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step, write_step
from tests.tools.planned import plan_cache


def test_a_source_is_not_missed_whose_rows_were_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was replaced or removed, and the corpus was compared again before its shard was encoded."""
    planned = plan_cache(tmp_path, str(tmp_path / "cache"))

    def identify(url: str, _: object) -> str:
        name = Path(url).stem
        return "another" if name == "v1" else f"id{name[1:]}"

    monkeypatch.setattr(changed_sources, "identify_url", identify)
    with pytest.raises(RecipeMismatchError, match="1 of 9 source files are not the ones"):
        check_sources(planned, planned.missing_shards())
    rows = KnownCache(planned.storage, planned.manifest, planned.plan).rows_of(["v1"])
    step = Step(kind="grow", retired=[retire(rows, "source changed")])
    assert write_step(planned.storage, planned.manifest, step)
    manifest = refresh(planned.storage, planned.manifest)
    now = PlannedCache(config=planned.config, manifest=manifest, storage=planned.storage)
    assert ShardId("5x64x96", 0) in now.missing_shards()
    assert check_sources(now, now.missing_shards()) is None
