"""What an estimate measures, how it scales, and that it changes nothing in the cache."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import latentcache
from latentcache.config.files import load_config
from latentcache.config.sections import QualityConfig
from latentcache.decoders.pool import DecodePool
from latentcache.planning.planner import plan_corpus
from latentcache.planning.recipe import resolve_encoder
from latentcache.running.estimate import (
    MIN_RUNS,
    SHARDS,
    BucketEstimate,
    Estimate,
    Memory,
    measure,
    sample_plan,
)
from latentcache.running.worker import SHARDS_IN_HAND
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.fields import text_field

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

BUCKET = BucketEstimate(
    name="5x64x96",
    num_clips=1000,
    num_measured=16,
    num_ok=16,
    num_processes=4,
    fetch_s=0.4,
    decode_s=2.0,
    encode_s=1.0,
    write_s=0.5,
    spine_s=1.1,
    stored_bytes=100.0,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("estimate") / "corpus", 4)


def estimate_of(*buckets: BucketEstimate) -> Estimate:
    return Estimate(
        device="cpu",
        buckets=buckets,
        quality=QualityConfig(every=0),
        shard_clips=64,
        start_s=10.0,
        compare_s=3.0,
        memory=Memory(worker_bytes=1, decoder_bytes=1, gpu_bytes=None, gpu_total_bytes=None),
    )


def test_the_slowest_stage_is_the_limit_and_decides_the_time() -> None:
    assert (BUCKET.limit, BUCKET.clip_s) == ("encode", BUCKET.spine_s)
    decoding = replace(BUCKET, num_processes=1)
    assert (decoding.limit, decoding.clip_s) == ("decode", decoding.decode_s)
    fetching = replace(BUCKET, fetch_s=20.0)
    assert (fetching.limit, fetching.clip_s) == ("fetch", 5.0)
    writing = replace(BUCKET, write_s=2 * SHARDS_IN_HAND * BUCKET.spine_s)
    assert (writing.limit, writing.clip_s) == ("write", 2 * BUCKET.spine_s)


def test_more_workers_share_the_work_but_not_the_start() -> None:
    one = estimate_of(BUCKET, BUCKET)
    assert one.busy_s == 2 * BUCKET.num_clips * BUCKET.clip_s
    ends_s = one.wall_s(1) - one.busy_s
    assert ends_s > 0
    assert one.wall_s(8) == pytest.approx(one.busy_s / 8 + ends_s)
    assert one.worker_hours(8) > one.worker_hours(1)


def test_the_quality_gate_is_counted() -> None:
    without = estimate_of(BUCKET)
    quality = QualityConfig(every=100, judged_clips=3)
    sampled = BUCKET.num_clips // quality.every
    gated = replace(without, quality=quality)
    more_s = gated.wall_s(1) - without.wall_s(1)
    assert more_s == pytest.approx(gated.compare_s * (sampled + quality.judged_clips))


def test_a_sample_is_spread_over_the_bucket(tmp_path: Path, corpus: Path) -> None:
    config = load_config(str(make_config(tmp_path, corpus, "memory://none")))
    plan = plan_corpus(config, resolve_encoder(config)[0])
    sample = sample_plan(plan, 2, num_warm=2)
    for number, (bucket, table) in enumerate(sorted(plan.buckets.items())):
        keys, rows = table["key"].to_pylist(), sample.buckets[bucket]["key"].to_pylist()
        warm = 1 if number else 2
        assert len(rows) == SHARDS * 2 + warm
        assert (rows[0], rows[SHARDS * 2 - 1]) == (keys[0], keys[-1])
        assert len(set(rows)) == min(len(keys), SHARDS * 2)


@pytest.mark.long
def test_a_sample_of_every_clip_takes_the_bytes_of_the_run(tmp_path: Path, corpus: Path) -> None:
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    config = load_config(str(path))
    spec, identity = resolve_encoder(config)
    plan = plan_corpus(config, spec)
    most = max(table.num_rows for table in plan.buckets.values())
    assert most % SHARDS == 0
    found = measure(config, plan, spec, identity, num_clips=most)
    assert not (tmp_path / "cache").exists()
    assert run_inline("precompute", path)[0] == 3
    rows = latentcache.open_cache(str(tmp_path / "cache")).table().to_pylist()
    for bucket in found.buckets:
        lengths = [row["length"] for row in rows if row["bucket"] == bucket.name]
        assert bucket.total_bytes == sum(lengths)
        assert (bucket.num_ok, bucket.num_measured) == (most, most)
        assert min(bucket.decode_s, bucket.encode_s, bucket.write_s) > 0
    assert min(found.start_s, found.compare_s, found.memory.worker_bytes) > 0


def test_the_job_prints_every_bucket_and_the_cost_and_writes_nothing(
    tmp_path: Path, corpus: Path
) -> None:
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    status, printed = run_inline("estimate", path, "--clips", 2, "--price", 1000, "--gpus", 3)
    begun = [
        printed.index(said) for said in ("listing the corpus", "probing 7 sources", "loading the")
    ]
    assert begun == sorted(begun)
    assert begun[-1] < printed.index("bucket  ")
    assert status == 0
    for said in (
        "1x64x96",
        "5x64x96",
        "with 3 workers",
        "a decoding process",
        "of the time is limited",
    ):
        assert said in printed
    match = re.search(r"([\d.]+) worker hours, ([\d.]+) at 1000 an hour", printed)
    assert match
    assert float(match[2]) == pytest.approx(1000 * float(match[1]), abs=5.0)
    assert not (tmp_path / "cache").exists()


def test_texts_of_fields_are_counted_whatever_columns_they_are_in(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", 2)
    rows = [
        {"video": "v0.mp4", "caption": "one", "texts": ["a", "b", None]},
        {"video": "v1.mp4", "caption": None, "texts": ["b", " ", "c"]},
    ]
    table = folder / "corpus.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns: dict[str, object] = {"one": "caption", "many": "texts", "all": ["caption", "texts"]}
    fields = {name: text_field(column=column) for name, column in columns.items()}
    fields["few"] = text_field(column="texts", max_choices=1)
    fields["empty"] = text_field(missing="empty")
    corpus = {"source": str(table), "keep": ["texts"]}
    path = make_config(tmp_path, folder, str(tmp_path / "cache"), corpus=corpus, fields=fields)
    status, printed = run_inline("estimate", path, "--clips", 1)
    assert status == 0, printed
    found = re.findall(r"^field +(\w+): .*, (\d+) different texts", printed, re.MULTILINE)
    assert {name: int(num) for name, num in found} == {
        "one": 1,
        "many": 3,
        "all": 4,
        "few": 2,
        "empty": 2,
    }


def test_some_of_many_sources_are_probed_and_numbers_are_scaled(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    probe = DecodePool.probe

    def spy(pool: DecodePool, url: str, kind: str, **options: bool) -> object:
        probed.append(url)
        return probe(pool, url, kind, **options)

    monkeypatch.setattr(DecodePool, "probe", spy)
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    status, printed = run_inline("estimate", path, "--clips", 2, "--sources", 4)
    assert (status, len(probed), len(set(probed))) == (0, 4, 4)
    assert "7 sources; 4 of them, drawn at random, are probed." in printed
    assert "To probe all takes about" in printed
    config = load_config(str(path))
    plan = plan_corpus(config, resolve_encoder(config)[0], max_sources=4)
    for bucket, table in plan.buckets.items():
        assert re.search(
            rf"^{bucket.name} +{round(table.num_rows * 7 / 4)} ", printed, re.MULTILINE
        )
    probed.clear()
    assert "drawn at random" not in run_inline("estimate", path, "--clips", 2, "--sources", 7)[1]
    assert len(probed) == 7


def test_a_mistake_that_the_gate_finds_is_found_by_the_estimate(
    tmp_path: Path, corpus: Path
) -> None:
    sections = {
        "encoder": {"kind": "tests.tools.encoders.spoilt_dct:negative"},
        "quality": {"min_psnr": 20},
    }
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"), **sections)
    status, printed = run_inline("estimate", path, "--clips", 4)
    assert status == 1
    assert "RunStoppedError" in printed
    assert "a negative" in printed


@pytest.mark.parametrize("wrong", [["--clips", "0"], ["--gpus", "0"], ["--price", "-1"]])
def test_a_wrong_command_line_is_refused(wrong: list[str], tmp_path: Path, corpus: Path) -> None:
    status, printed = run_inline("estimate", make_config(tmp_path, corpus, "memory://x"), *wrong)
    assert status == 2
    assert wrong[0] in printed


def test_a_sample_is_of_runs_of_neighbours_where_sources_give_many_clips(
    tmp_path: Path, corpus: Path
) -> None:
    clips = {"select": "all", "stride": 1}
    config = load_config(str(make_config(tmp_path, corpus, "memory://none", clips=clips)))
    plan = plan_corpus(config, resolve_encoder(config)[0])
    bucket, table = max(plan.buckets.items(), key=lambda item: len(item[1]))
    shard_clips = len(table) // 4
    sample = sample_plan(plan, shard_clips, num_warm=1).buckets[bucket]
    keys = table["key"].to_pylist()
    rows = [keys.index(key) for key in sample["key"].to_pylist()[: SHARDS * shard_clips]]
    starts = 1 + sum(after != before + 1 for before, after in pairwise(rows))
    assert starts <= MIN_RUNS < len(rows)
    assert set(sample["source"].to_pylist()) == set(table["source"].to_pylist())
