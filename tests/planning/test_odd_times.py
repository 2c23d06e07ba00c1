"""Kept times that Python has no objects for: planned, committed, adopted, changed, tried again, checked."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from latentcache.copying.stored_rows import OpenCache, read_rows
from latentcache.core.records import ShardReport
from latentcache.corpus.cached import ParentRows
from latentcache.errors import CorpusError, RunStoppedError
from latentcache.format.commit import adopt_shard
from latentcache.format.paths import sample_path
from latentcache.format.shards import get_format
from latentcache.format.tables import from_parquet
from latentcache.inspecting.verify import verify
from latentcache.planning import planner
from latentcache.planning.retry import plan_retry
from latentcache.planning.step import Step
from latentcache.planning.to_read import failed_rows
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.running.driver import Run
from latentcache.storage.cache_urls import clip_url
from tests.planning.test_odd_columns import Corpus
from tests.planning.test_pieces import Prober
from tests.tools.planned import fill_cache

TIME = pa.timestamp("ns", "Europe/Berlin")
KINDS = [
    TIME,
    pa.timestamp("s"),
    pa.duration("ns"),
    pa.time64("ns"),
    pa.dictionary(pa.int8(), TIME),
    pa.list_(TIME),
    pa.struct({"at": TIME, "for": pa.list_(pa.duration("ns"), 1)}),
    pa.map_(pa.string(), TIME),
]


def values_of(kind: pa.DataType, *numbers: int) -> pa.Array:
    """Return times of so many nanoseconds, or whatever the unit is, in a type."""
    if pa.types.is_dictionary(kind):
        return values_of(kind.value_type, *numbers).dictionary_encode()
    times = pa.array(numbers, pa.int64())
    if pa.types.is_map(kind):
        return pa.array(
            [[("at", number)] for number in numbers], pa.map_(pa.string(), pa.int64())
        ).cast(kind)
    if pa.types.is_struct(kind):
        rows = [{"at": number, "for": [number]} for number in numbers]
        return pa.array(rows, pa.struct({"at": pa.int64(), "for": pa.list_(pa.int64(), 1)})).cast(
            kind
        )
    if pa.types.is_list(kind):
        return pa.array([[number] for number in numbers]).cast(kind)
    return times.cast(kind)


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(planner, "probing_pool", lambda _: Prober(""))
    return Corpus(tmp_path)


def check_readers(url: str, values: pa.Array) -> None:
    """Samples and batches give times of nanoseconds as their numbers, wherever they are nested.

    Parquet has no seconds, so those are milliseconds."""
    cache = open_cache(url)
    given = {sample["key"]: sample["meta"] for sample in map(cache.__getitem__, range(len(cache)))}
    batches = LatentLoader(cache, 2, shuffle=False, uneven="exact")
    assert {k: v for b in batches for k, v in zip(b["key"], b["meta"], strict=True)} == given
    if "[ns" in str(values.type):
        assert {str(10**12 + 1), "2"} == set(re.findall(r"\d+", str([*given.values()])))
    else:
        assert {*given.values()} == {10**15 + 1000, datetime(1970, 1, 1, 0, 0, 2)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_times_of_any_unit_are_kept(corpus: Corpus, kind: pa.DataType) -> None:
    corpus.write(values_of(kind, 10**12 + 1, 2))
    planned, _ = corpus.plan()
    fill_cache(planned)
    opened = OpenCache(storage=planned.storage, manifest=planned.manifest)
    manifest, shard_format = planned.manifest, get_format(planned.manifest.format)
    for place in planned.planned_shards():
        path, shard = sample_path(*place), planned.plan.shard(place)
        table = from_parquet(planned.storage.read(path))
        assert table["meta"].equals(planned.plan.table(place)["meta"])
        planned.storage.delete(path)
        layout = manifest.layouts()[place.bucket]
        adopted = adopt_shard(planned.storage, shard_format, layout, shard, manifest.fingerprint)
        assert adopted is not None
        assert read_rows(opened, place, [0], decompress=False).keys() == {0}
    assert not verify(planned.storage).problems
    check_readers(planned.storage.url, values_of(kind, 10**12 + 1, 2))
    assert corpus.plan()[1] == 0
    step, _ = plan_retry(planned, failed_rows(planned.storage, manifest), lambda: Prober(""))
    ((again,),) = step.clips.values()
    assert again["meta"].equals(planned.plan.rows(planned.planned_shards()[0])["meta"].slice(2, 1))
    corpus.write(values_of(kind, 10**12 + 2, 2))
    assert corpus.plan()[1] == 8


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_clips_of_a_cache_with_kept_times_are_sources(corpus: Corpus, kind: pa.DataType) -> None:
    corpus.write(values_of(kind, 10**12 + 1, 2))
    planned, _ = corpus.plan()
    fill_cache(planned)
    place = planned.planned_shards()[0]
    row = ParentRows({}, []).row(clip_url(planned.storage.absolute_url, *place, 0))
    assert (row["row"], row["status"]) == (0, "ok")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_run_whose_clips_have_kept_times_says_how_they_failed(
    corpus: Corpus, kind: pa.DataType
) -> None:
    corpus.write(values_of(kind, 10**12 + 1, 2))
    planned, _ = corpus.plan()
    fill_cache(planned)
    place = planned.planned_shards()[0]
    counts = dict.fromkeys(("num_frames", "stored_bytes", "table_bytes", "raw_bytes"), 1)
    report = ShardReport(
        bucket=place.bucket, shard=place.number, num_clips=10**6, num_ok=0, **counts
    )
    run = Run(planned, [])
    run._judged.append(report)
    run._judge.add_shard(report)
    with pytest.raises(RunStoppedError, match="of the latest 1000000 clips failed"):
        run._check()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_corpus_with_kept_times_that_gives_no_clip_is_named_so(
    corpus: Corpus, kind: pa.DataType
) -> None:
    corpus.write(values_of(kind, 10**12 + 1, 2))
    planned, _ = corpus.plan()
    facts = {"source": ["a.mp4"], "reason": ["corrupt"], "message": ["cut"]}
    rejected = pa.table({**facts, "meta": values_of(kind, 1)})
    with pytest.raises(CorpusError, match=r"a\.mp4: cut"):
        planner.check_anything(planned.config, Step(kind="plan", rejected=rejected))
