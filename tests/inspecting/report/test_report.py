"""The page of the report: what it shows of clips, and that nothing in a cache can break it."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import av
import pytest
import torch

import latentcache
from jobs import report as job
from latentcache import encoders
from latentcache.config.files import load_stored_config
from latentcache.core.image_quality import compare
from latentcache.errors import ConfigError
from latentcache.format.manifest import read_manifest
from latentcache.inspecting.choose import find_places
from latentcache.inspecting.clip_reader import PairReader
from latentcache.inspecting.report.collect import Report, collect
from latentcache.inspecting.report.markup import h
from latentcache.inspecting.report.page import render
from latentcache.inspecting.report.reconstructions import show
from latentcache.storage.folder import Storage
from tests.tools.browser import Browser, needs_chromium
from tests.tools.caches import make_config, make_corpus, run_job
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
