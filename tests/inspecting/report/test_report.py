"""The report: what it counts, what it shows, and that nothing in a cache can break its page."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch

import latentcache
from jobs import report as job
from latentcache import encoders
from latentcache.config.files import load_stored_config
from latentcache.core.image_quality import Quality, compare
from latentcache.core.records import REASONS, Bucket
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.errors import ConfigError
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import sample_path
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.inspecting.choose import draw_stratified, find_places
from latentcache.inspecting.clip_reader import PairReader
from latentcache.inspecting.report import figures
from latentcache.inspecting.report.buckets import MAX_BUCKETS
from latentcache.inspecting.report.collect import Report, collect
from latentcache.inspecting.report.facts import (
    EXAMPLES,
    MAX_GROUPS,
    TIME_EDGES_S,
    read_facts,
    summarise,
)
from latentcache.inspecting.report.latents import ChannelStatistics, IdStatistics, describe_latents
from latentcache.inspecting.report.markup import Markup, h
from latentcache.inspecting.report.page import MESSAGE_CHARACTERS, render
from latentcache.inspecting.report.reconstructions import psnr_by_position, show
from latentcache.inspecting.report.tables import sortable
from latentcache.running.log import RunLog
from latentcache.running.log_lines import SHARD_COMMITTED
from latentcache.storage.folder import Storage
from tests.tools.browser import Browser, needs_chromium
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.synthetic import facts_of, make_spec, retire, write_cache
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

HOSTILE = (
    "<script>document.title = 'x'</script> <img src=http://x.example/a onerror=alert(1)> &amp; \"'"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips and an image, sampled and resized, of hostile caption and name; two are rejected."""
    folder = tmp_path_factory.mktemp("report")
    corpus = make_corpus(folder / "corpus", 2)
    (corpus / "v0.txt").write_text(HOSTILE)
    write_video(corpus / "<b>&quot;'.mp4", moving_pattern(13, 64, 96, seed=3))
    clips = {"size": [48, 80], "fps": 10.0, "interpolation": "bilinear"}
    config = make_config(folder, corpus, str(folder / "cache"), clips=clips)
    run_job("precompute", config, status=3)
    return folder / "cache"


@pytest.fixture(scope="module")
def page(cache: Path) -> Path:
    path = cache.parent / "made" / "report.html"
    out, _ = run_job("report", cache, "-o", path, "--clips", 6)
    assert "4 clips ok and 0 failed of 4 planned" in out
    return path


def look(cache: Path, num_clips: int = 6) -> Report:
    storage = Storage(str(cache))
    manifest = read_manifest(storage)
    config = load_stored_config(manifest.config, url=str(cache), storage_options={})
    return collect(storage, manifest, config, num_clips=num_clips, seed=0)


class Elements(HTMLParser):
    """Tags, text and the addresses that a page names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        assert not [name for name, _ in attrs if name.startswith("on")]
        named = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.addresses += named

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.slow
def test_the_page_is_alone_and_shows_hostile_text_as_text(page: Path) -> None:
    text = page.read_text()
    found = Elements(text)
    assert not {"script", "b-quot", "iframe", "link", "object"} & found.tags.keys()
    own = ("data:image/", "data:video/mp4;", "#")
    assert all(address.startswith(own) for address in found.addresses)
    assert any(HOSTILE in part for part in found.text)
    assert any("<b>&quot;'.mp4#0" in part for part in found.text)
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert page.stat().st_size < 5 << 20


@pytest.mark.slow
def test_every_clip_is_shown_with_its_source_and_how_close_it_is(page: Path, cache: Path) -> None:
    opened = latentcache.open_cache(str(cache))
    text = page.read_text()
    for index in range(len(opened)):
        key = opened[index]["key"]
        assert str(h("h3", key, dir="auto")) in text
    found = look(cache)
    frames = {clip.key: len(clip.thumbnails) for clip in found.clips}
    assert frames == {opened[i]["key"]: 1 if "png" in opened[i]["key"] else 4 for i in range(4)}
    assert text.count("<img") == 2 * sum(frames.values())
    scores = sorted(f"{clip.quality.psnr_db:.1f}" for clip in found.clips if clip.quality)
    assert sorted(re.findall(r"PSNR ([\d.]+) dB, SSIM", text)) == scores


@pytest.mark.slow
def test_clips_play_and_pictures_do_not(page: Path, cache: Path) -> None:
    found = {clip.key: clip for clip in look(cache).clips}
    assert all((clip.film is None) == (clip.frames == 1) for clip in found.values())
    films = [clip for clip in found.values() if clip.film]
    for clip in films:
        data = base64.b64decode(str(clip.film).partition(",")[2])
        with av.open(io.BytesIO(data)) as container:
            assert sum(1 for _ in container.decode(video=0)) == clip.frames
            assert container.streams.video[0].average_rate == pytest.approx(clip.fps)
    assert page.read_text().count("<video") == len(films) > 0


@pytest.mark.slow
def test_films_that_would_take_too_many_bytes_are_left_out(cache: Path) -> None:
    storage = Storage(str(cache))
    manifest = read_manifest(storage)
    stored = load_stored_config(manifest.config, url=storage.url, storage_options={})
    opened = latentcache.open_cache(str(cache))
    with PairReader(opened, stored) as reader:
        pair = reader.pair(find_places(opened, ["v0.mp4#0"])[0])
    assert show(pair, 1 << 20).film
    assert show(pair, 100).film is None


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
def test_sources_are_the_pixels_that_the_encoder_saw(cache: Path) -> None:
    storage = Storage(str(cache))
    manifest = read_manifest(storage)
    stored = load_stored_config(manifest.config, url=storage.url, storage_options={})
    module, encoder_config = encoders.resolve(stored.encoder)
    encoder = module.build(encoder_config, spec=manifest.spec, device=torch.device("cpu"))
    opened = latentcache.open_cache(str(cache))
    with PairReader(opened, stored) as reader:
        pair = reader.pair(find_places(opened, ["v0.mp4#0"])[0])
    assert pair.source is not None
    assert pair.source.shape == (5, 48, 80, 3)
    again = encoder.encode(pair.source[None])[0, :16].to(torch.bfloat16)
    assert torch.equal(again, opened.stored("v0.mp4#0"))
    assert torch.equal(pair.decoded, opened.decode("v0.mp4#0"))
    assert pair.quality == compare(pair.decoded, pair.source)
    assert pair.fps == 10


@pytest.mark.slow
def test_without_a_decoder_the_rest_is_shown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentcache.encoders.dct import DCTEncoder

    monkeypatch.delattr(DCTEncoder, "decode")
    found = look(cache)
    text = render(found, made_at="today")
    assert not found.clips
    assert "The latents were not decoded" in text
    assert "DCT has no `decode`" in text
    assert "Mean ± standard deviation by channel" in text


@pytest.mark.slow
def test_without_sources_latents_are_decoded_alone(cache: Path, tmp_path: Path) -> None:
    corpus = cache.parent / "corpus"
    try:
        shutil.move(corpus, tmp_path / "away")
        found = look(cache, 2)
    finally:
        shutil.move(tmp_path / "away", corpus)
    text = render(found, made_at="today")
    assert [clip.quality for clip in found.clips] == [None, None]
    assert text.count("No source to compare with: the corpus cannot be read: ") == 1
    not_tried = (
        "it was not tried, because an earlier one could not be read: the corpus cannot be read: "
    )
    assert text.count(f"No source to compare with: {not_tried}") == 1
    assert "How close they are" not in text
    assert text.count("<img") == sum(len(clip.thumbnails) for clip in found.clips)


@pytest.mark.slow
def test_damaged_latents_are_named_and_the_others_shown(cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    opened = latentcache.open_cache(str(copy))
    shards = (copy / "latents" / "5x48x80" / "c").rglob("*")
    path = min(path for path in shards if path.is_file())
    data = bytearray(path.read_bytes())
    data[opened.rows("5x48x80", 0).chunks[1].offset + 5] ^= 1
    path.write_bytes(data)
    found = look(copy)
    assert len(found.clips) == 3
    assert len(found.damaged) == 1
    assert f"Damaged: {found.damaged[0][:20]}".replace("'", "&#x27;") in render(found, "today")


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


@pytest.mark.slow
def test_an_interrupted_cache_says_so_and_how_to_go_on(cache: Path, tmp_path: Path) -> None:
    assert look(cache, 0).state.startswith("finished")
    half = tmp_path / "half"
    shutil.copytree(cache, half)
    (half / "index.parquet").unlink()
    for path in [*half.glob("samples/5x48x80/*"), *half.glob("latents/5x48x80/c/*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = look(half, 0)
    assert report.state.startswith("interrupted: ")
    assert report.state.endswith(f"Go on with:  latentcache resume {half}")
    page = render(report, made_at="today")
    assert str(h("div", f"State: {report.state}", class_="note")) in page


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


def channels(clips: list[torch.Tensor], spec: LatentSpec) -> ChannelStatistics:
    found = describe_latents(clips, spec)
    assert isinstance(found, ChannelStatistics)
    return found


def test_statistics_are_those_of_all_values_before_and_after_the_normaliser() -> None:
    spec = make_spec()
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(4, t, 4, 6, generator=generator).bfloat16() for t in (2, 3)]
    found = channels(clips, spec)
    values = torch.cat([clip.double().flatten(1) for clip in clips], dim=1).numpy()
    np.testing.assert_allclose(found.mean, values.mean(1))
    np.testing.assert_allclose(found.std, values.std(1))
    np.testing.assert_array_equal(found.maximum, values.max(1))
    shift, scale = np.array(spec.normaliser.shift), np.array(spec.normaliser.scale)
    np.testing.assert_allclose(found.normal_mean, (values.mean(1) - shift) * scale, atol=1e-6)
    np.testing.assert_allclose(found.normal_std, values.std(1) * scale, rtol=1e-6)
    assert found.posterior_std is None
    assert found.verdicts() == ["ok"] * 4


def test_moments_are_split_and_channels_that_carry_nothing_are_flagged() -> None:
    spec = make_spec(stored="moments")
    mean = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    mean[1] = 0.25
    mean[3] *= 1000
    logvar = torch.full_like(mean, 2 * math.log(0.5))
    found = channels([torch.cat([mean, logvar])], spec)
    assert found.verdicts() == ["ok", "dead", "ok", "exploding"]
    assert found.posterior_std is not None
    np.testing.assert_allclose(found.posterior_std, 0.5, rtol=1e-6)
    plain = make_spec()
    without = LatentSpec(**{**vars(plain), "normaliser": Normaliser(kind="scale", scale=(0.1,))})
    assert channels([mean], without).verdicts() == ["ok", "dead", "ok", "exploding"]


def test_ids_are_counted_over_clips() -> None:
    spec = LatentSpec(**{**vars(make_spec("uint8", "ids")), "ids": IdSpec(codebook_size=64)})
    clips = [torch.tensor([[[0, 0, 1, 1]]]).byte(), torch.tensor([[[2, 2, 3, 3]]]).byte()]
    found = describe_latents(clips, spec)
    assert isinstance(found, IdStatistics)
    assert (found.num_ids, found.usage, found.entropy_bits, found.perplexity) == (8, 4 / 64, 2, 4)
    assert describe_latents([], spec) is None


def test_psnr_is_by_position_in_the_group() -> None:
    causal = make_spec()
    quality = Quality(mse=(1.0, 4.0, 9.0, 16.0, 25.0, 4.0, 9.0, 16.0, 25.0), ssim=())
    found = psnr_by_position([(quality, 9)], causal)
    expected = {"first": 1, "1": 4, "2": 9, "3": 16, "4": 25}
    assert found == pytest.approx({k: 10 * math.log10(255**2 / v) for k, v in expected.items()})
    assert list(found) == list(expected)
    even = LatentSpec(**{**vars(causal), "frame_rule": FrameRule(multiple=4)})
    fewer = Quality(mse=(1.0, 4.0, 9.0, 16.0, 1.0), ssim=())
    assert list(psnr_by_position([(fewer, 8)], even)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("num", [1, 3, 10, 50, 1000])
def test_samples_are_distinct_and_of_every_bucket(num: int) -> None:
    counts = [30, 0, 2, 500, 1]
    drawn = draw_stratified(counts, num, seed=1)
    assert len(drawn) == len(set(drawn)) == min(num, sum(counts))
    assert all(0 <= n < sum(counts) for n in drawn)
    assert drawn == draw_stratified(counts, num, seed=1)
    ends = np.cumsum(counts)
    groups = [int(np.searchsorted(ends, n, side="right")) for n in drawn]
    assert groups[:4] == [3, 0, 2, 4][: min(num, 4)]
    if 10 <= num < sum(counts):
        assert drawn != draw_stratified(counts, num, seed=2)


def test_markup_escapes_whatever_is_not_markup() -> None:
    made = h("p", "<i>", [Markup("<br>"), "&"], None, 3, title='"><script>', class_="x")
    assert made == '<p title="&quot;&gt;&lt;script&gt;" class="x">&lt;i&gt;<br>&amp;3</p>'


def arguments(cache: Path, **changes: object) -> argparse.Namespace:
    common = {
        "output": "x.html",
        "clips": 1,
        "seed": 0,
        "device": None,
        "overrides": [],
        "allow_encoder": [],
    }
    return argparse.Namespace(cache=str(cache), **{**common, **changes})


@pytest.mark.slow
def test_what_is_wrong_is_one_message(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot write .*file/x\.html: .*Give another path with -o"
    ):
        job.report(arguments(cache, output=str(tmp_path / "file" / "x.html")))
    with pytest.raises(ConfigError, match="--clips and --seed are at least 0"):
        job.report(arguments(cache, clips=-1))
    with pytest.raises(ConfigError, match="--device='nothing' is not a device to be used here"):
        job.report(arguments(cache, device="nothing"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'matplotlib"):
        job.report(arguments(cache))


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(page: Path, tmp_path: Path) -> None:
    colours = set()
    with Browser() as browser:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            browser.open(page, width=width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.evaluate("document.title").startswith("latentcache report")
            cells = "[...document.querySelectorAll('th, td')]"
            squeezed = (
                f"{cells}.filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.innerText)"
            )
            assert browser.evaluate(squeezed) == []  # else they lie over one another
            pictures = "[...document.images].map(image => image.naturalWidth > 0)"
            shown = browser.evaluate(pictures)
            assert len(shown) == page.read_text().count("<img")
            assert all(shown)
            style = "(e => [getComputedStyle(e).fill, getComputedStyle(document.body).color])"
            label, ink = browser.evaluate(f"{style}(document.querySelector('svg text'))")
            assert label == ink
            colours.add((ink, browser.evaluate("getComputedStyle(document.body).backgroundColor")))
            texts = "[...document.querySelectorAll('svg text')]"
            heights = browser.evaluate(f"{texts}.map(t => t.getBoundingClientRect().height)")
            assert min(heights) >= 9
        browser.screenshot(tmp_path / "phone.png")
        assert browser.problems == []
    assert len(colours) == 2
