"""What the report counts of rows, and that its page stays bounded whatever a cache says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from latentcache.core.records import REASONS, Bucket
from latentcache.format.paths import sample_path
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.inspecting.report import figures
from latentcache.inspecting.report.buckets import MAX_BUCKETS
from latentcache.inspecting.report.collect import Report
from latentcache.inspecting.report.facts import (
    EXAMPLES,
    MAX_GROUPS,
    TIME_EDGES_S,
    read_facts,
    summarise,
)
from latentcache.inspecting.report.latents import ChannelStatistics, describe_latents
from latentcache.inspecting.report.page import MESSAGE_CHARACTERS, render
from latentcache.inspecting.report.tables import sortable
from latentcache.running.log import RunLog
from latentcache.running.log_lines import SHARD_COMMITTED
from tests.tools.synthetic import facts_of, make_spec, retire, write_cache


def test_heads_sort_a_table_by_the_places_in_its_rows() -> None:
    table = sortable(
        "t", ["name", "size"], [["a", 5], ["b", 9], ["c", 7]], [[2, 5], [0, 9], [1, 7]]
    )
    places = re.findall(r"--by0: (\d); --by1: (\d)", table)
    assert places == [("0", "2"), ("2", "0"), ("1", "1")]
    assert re.findall(r"value='(\d)'\]:checked\) tbody tr \{ order: var\(--by(\d)\)", table) == [
        ("0", "0"),
        ("1", "1"),
    ]
    assert table.count('<input type="radio" name="t"') == 2


def test_plots_by_channel_share_both_axes() -> None:
    """Otherwise a channel's mean could not be compared with its histogram beside it."""
    spec = make_spec(channels=4)
    latents = [torch.randn(4, 2, 4, 4) * torch.tensor([1, 5, 0.1, 20]).view(4, 1, 1, 1) + 3]
    found = describe_latents(latents, spec)
    assert isinstance(found, ChannelStatistics)
    limits = figures.value_limits(found)
    drawn = [figures.channel_means(found, limits), figures.channel_histograms(found, limits)]
    ticks = [set(re.findall(r">([\u2212\d.]+)</text>", drawing)) for drawing in drawn]
    assert ticks[0] == ticks[1]
    assert len(ticks[0]) > 4
    assert limits[0] <= (found.mean - found.std).min()
    assert limits[1] >= (found.mean + found.std).max()


@pytest.mark.slow
def test_it_counts_what_is_committed_whether_published_or_not(tmp_path: Path) -> None:
    failed = [("5x32x32", 1), ("5x32x32", 2), ("1x32x48", 4)]
    written = write_cache(str(tmp_path), failed=failed, rejected=3, published=False)
    written.storage.delete(sample_path("5x32x32", 2))
    facts = read_facts(written.storage, written.manifest)
    found = {b.bucket.name: b for b in facts.buckets}
    big = found["5x32x32"]
    assert (big.planned_clips, big.planned_shards, big.committed_shards) == (11, 3, 2)
    assert (big.num_ok, big.num_failed, big.num_frames) == (6, 2, 30)
    assert big.duration_s == pytest.approx(6 * 5 / 8)
    assert big.raw_bytes == sum(
        array.nbytes for key, array in list(written.arrays.items())[4:] if key < "5x32x32-0008"
    )
    assert big.pixel_bytes == 6 * 5 * 32 * 32 * 3
    assert {reason: f.count for reason, f in facts.failures.items()} == {"corrupt": 3}
    assert [key for key, _ in facts.failures["corrupt"].examples] == sorted(written.failed)
    assert {reason: f.count for reason, f in facts.rejected.items()} == {"unreadable": 3}
    assert facts.index["num_ok"].to_pylist() == [4, 0, 2, 4]
    text = render(
        Report(url="here", state="interrupted", manifest=written.manifest, facts=facts),
        made_at="today",
    )
    assert "8 of 11 clips, 2 of 3 shards" in text
    assert "the decoder met damaged data" in text
    assert "None was read." in text


def test_what_is_retired_is_not_planned_any_more(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path))
    gone = [("1x32x48", shard, row) for shard, row in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))]
    some = retire(written, [*gone, ("5x32x32", 0, 1), ("5x32x32", 2, 0)])
    facts = read_facts(written.storage, some)
    (big,) = facts.buckets
    assert (big.planned_clips, big.planned_shards, big.committed_shards) == (9, 3, 3)
    assert (big.num_ok, big.num_failed) == (9, 0)
    text = render(Report(url="here", state="finished", manifest=some, facts=facts), made_at="today")
    assert "100.0%" in text
    assert "9 of 9 clips, 3 of 3 shards" in text
    rows = [("5x32x32", n // 4, n % 4) for n in range(11) if n not in (1, 8)]
    none = retire(replace(written, manifest=some), rows)
    facts = read_facts(written.storage, none)
    assert facts.buckets == []
    text = render(Report(url="here", state="finished", manifest=none, facts=facts), made_at="today")
    assert "committed: 0 of 0 clips" in text


def test_a_stranger_s_names_make_no_endless_page(tmp_path: Path) -> None:
    num = MAX_GROUPS + 100
    written = write_cache(str(tmp_path), buckets={"5x32x32": 2})
    rows = from_parquet(written.storage.read(sample_path("5x32x32", 0)))
    table = pa.concat_tables([rows] * num)
    names = pa.array([f"decoder {n}" for n in range(2 * num)])
    table = table.set_column(table.column_names.index("decoder"), "decoder", names)
    long = "x" * 100_000
    texts = {
        "status": ["failed" if n % 2 else "ok" for n in range(2 * num)],
        "reason": [f"reason {n} {long[:1000]}" for n in range(2 * num)],
        "message": ["\u202e" + (long if n < 20 else "") for n in range(2 * num)],
    }
    for name, values in texts.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    found = summarise(table)
    assert found.failures.keys() == {"unknown"}
    assert len(found.groups["decoder"]) == MAX_GROUPS + 1
    assert sum(times.num_clips for times in found.groups["decoder"].values()) == num
    facts = replace(
        read_facts(written.storage, written.manifest), failures=found.failures, groups=found.groups
    )
    text = render(Report(url="here", state="x", manifest=written.manifest, facts=facts), "today")
    assert "\\u202exxx" in text
    assert "xxx…" in text
    assert long[:MESSAGE_CHARACTERS] not in text


@pytest.mark.slow
def test_a_page_of_many_failures_and_buckets_is_bounded_and_says_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    num, num_failed, num_buckets = 20_000, 5_000, MAX_BUCKETS + 1500
    written = write_cache(str(tmp_path), buckets={"5x32x32": 4})
    rows = from_parquet(written.storage.read(sample_path("5x32x32", 0)))
    table = pa.concat_tables([rows] * (num // 4))
    reasons = [*REASONS, *(f"reason {n}" for n in range(1000))]
    texts = {
        "status": ["failed" if n < num_failed else "ok" for n in range(num)],
        "reason": [reasons[n % len(reasons)] for n in range(num)],
        "message": [f"message {n} " + "x" * 2000 for n in range(num)],
    }
    for name, values in texts.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    found = summarise(table)
    assert sum(failures.count for failures in found.failures.values()) == num_failed
    facts = read_facts(written.storage, written.manifest)
    (bucket,) = facts.buckets
    buckets = [
        replace(
            bucket,
            bucket=Bucket(frames=5, height=16 * n, width=16),
            planned_clips=3 if n % 4 else 7,
        )
        for n in range(1, num_buckets + 1)
    ]
    facts = replace(facts, failures=found.failures, buckets=buckets)
    text = render(Report(url="here", state="x", manifest=written.manifest, facts=facts), "today")
    assert len(text) < 2_500_000
    assert text.count("--by0: ") == MAX_BUCKETS
    assert f"5x{16 * 4}x16" in text  # one of the largest
    assert f"5x{16 * 5}x16" not in text
    assert "1,500 buckets of the fewest clips, 4,500 in all, are left out here." in text
    assert f"and {found.failures['unknown'].count - EXAMPLES:,} more" in text


def test_a_cache_with_nothing_committed_has_a_page(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), buckets={"5x32x32": 4}, published=False)
    written.storage.delete(sample_path("5x32x32", 0))
    facts = read_facts(written.storage, written.manifest)
    text = render(
        Report(url="here", state="interrupted", manifest=written.manifest, facts=facts),
        made_at="today",
    )
    assert "0 of 4 clips, 0 of 1 shards" in text
    assert "No clip has been encoded yet." in text


@pytest.mark.slow
def test_times_are_by_stage_and_by_worker_where_it_is_known(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path), buckets={"5x32x32": 8}, failed=[("5x32x32", 0)])
    log = RunLog(written.storage, {})
    for shard, (seconds, worker) in enumerate([(0.5, "a"), (0.02, "<b>")]):
        path = sample_path("5x32x32", shard)
        table = from_parquet(written.storage.read(path))
        rows = [{**row, "encode_s": seconds} for row in table.to_pylist()]
        slower = pa.Table.from_pylist(rows, schema=table.schema)
        written.storage.write(path, to_parquet(slower, facts_of(table)))
        log.add(SHARD_COMMITTED, bucket="5x32x32", shard=shard, worker=worker)
    with log.run():
        pass
    facts = read_facts(written.storage, written.manifest)
    assert facts.times.num_clips == 7
    assert facts.times.total_s["encode_s"] == pytest.approx(3 * 0.5 + 4 * 0.02)
    workers = {name: times.num_clips for name, times in facts.groups["worker"].items()}
    assert workers == {"a": 3, "<b>": 4}
    bins = np.flatnonzero(facts.times.bins["encode_s"])
    assert [facts.times.bins["encode_s"][n] for n in bins] == [4, 3]
    assert all(
        TIME_EDGES_S[n] <= s <= TIME_EDGES_S[n + 1] for n, s in zip(bins, (0.02, 0.5), strict=True)
    )
    text = render(
        Report(url="here", state="interrupted", manifest=written.manifest, facts=facts),
        made_at="today",
    )
    assert "worker &lt;b&gt;" in text
