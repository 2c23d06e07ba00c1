"""Sources of servers that give no ranges, no more, or others than are asked for: as they are here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentcache.decoders.identity import identify_url
from latentcache.decoders.process import Worker
from latentcache.storage import retry, source_cache
from tests.decoders.test_ranged import SIZE, clip, decode, make_worker, without
from tests.tools.http_files import Server, serve
from tests.tools.long_videos import write_long

pytest.importorskip("aiohttp", reason="fsspec reads http with it")
pytestmark = pytest.mark.slow

NAMES = ("head.mp4", "tail.mp4", "video.mkv", "image.png", "image.jpg")
#: After so many ranges a server gives no more.
RANGES = (0, 1, 2, 4, 7)
FRAMES = 10


@pytest.fixture(scope="module", name="corpus")
def corpus_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of more than what is read ahead of one, and images of more than what is fetched whole."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in NAMES[:3]:
        heads = {"movflags": "faststart"} if name == "head.mp4" else {}
        write_long(folder / name, 120, size=SIZE, container=heads, preset="ultrafast", crf="10")
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    for name in NAMES[3:]:
        Image.fromarray(pixels).save(folder / name, quality=100)
    return folder


@pytest.fixture(name="server")
def server_fixture(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setattr(source_cache, "default_folder", lambda: tmp_path / "sources")
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 60.0)  # longer than the budget: no second try
    with serve(corpus) as server:
        server.has_tags = True
        yield server


def probe(url: str) -> dict[str, Any]:
    kind = "image" if Path(url).suffix in (".png", ".jpg") else "video"
    request = {"op": "probe", "url": url, "kind": kind, "identity_only": False}
    with worker(by_time=True) as prober:
        return prober.answer(request)


@contextlib.contextmanager
def worker(**settings: Any) -> Iterator[Worker]:
    """A decoding process, whose copies go with it."""
    one = make_worker(**settings)
    try:
        yield one
    finally:
        one._close()


@pytest.mark.parametrize("gives_others", [False, True])
@pytest.mark.parametrize("ranges", RANGES[:-1])
@pytest.mark.parametrize("name", NAMES)
def test_probing_finds_the_same(
    server: Server, corpus: Path, name: str, ranges: int, gives_others: bool
) -> None:
    local = probe(str(corpus / name))
    server.ranges_left, server.gives_others = ranges, gives_others
    assert probe(f"{server.url}/{name}") == local
    assert server.ranges_left < 0 or name == "image.jpg", "the server has refused none"
    assert identify_url(f"{server.url}/{name}") == local["identity"]


@pytest.mark.parametrize("gives_others", [False, True])
@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_clip_and_its_sound_are_the_same(
    server: Server, corpus: Path, name: str, ranges: int, gives_others: bool
) -> None:
    path = corpus / name
    asked = clip(str(path), identify_url(str(path)), 700, FRAMES, 25.0)
    heard = {**asked, "op": "sound", "rate": 16_000, "channels": 1, "max_samples": 1 << 20}
    with worker(frames=FRAMES) as here, worker(frames=FRAMES, by_ranges=True) as there:
        expected, expected_pixels = decode(here, asked)
        expected_sound = here.answer(heard)
        shape = (4 * expected_sound["num_samples"],)
        samples = here._buffers.view(0, shape).copy()
        server.ranges_left, server.gives_others = ranges, gives_others
        url = f"{server.url}/{name}"
        answer, pixels = decode(there, {**asked, "url": url})
        own = ("decoder", "decode_s", "fetch_s", "frame_numbers")
        assert without(answer, *own) == without(expected, *own)
        np.testing.assert_array_equal(pixels, expected_pixels)
        assert there.answer({**heard, "url": url}) == expected_sound
        np.testing.assert_array_equal(there._buffers.view(0, shape), samples)
    assert server.ranges_left < 0, "the server has refused none"


def test_the_sound_alone_is_the_same_where_ranges_end(server: Server, corpus: Path) -> None:
    path, url = corpus / "tail.mp4", f"{server.url}/tail.mp4"
    asked = clip(str(path), identify_url(str(path)), 700, FRAMES, 25.0)
    heard = {**asked, "op": "sound", "rate": 16_000, "channels": 1, "max_samples": 1 << 20}
    later = {**heard, "start": 2000}
    with worker(frames=FRAMES) as here, worker(frames=FRAMES, by_ranges=True) as there:
        assert "decoder" in there.answer({**asked, "url": url})
        server.ranges_left = 0
        assert there.answer({**later, "url": url}) == here.answer(later)
        assert server.ranges_left < 0, "the server has refused none"
        assert there.answer({**heard, "url": url}) == here.answer(heard)


@pytest.mark.parametrize("gives_others", [False, True])
def test_a_part_of_a_file_on_such_a_server_is_none_of_the_parts_damage(
    server: Server, corpus: Path, gives_others: bool
) -> None:
    server.ranges_left = 0
    server.gives_others = gives_others
    size = (corpus / "image.jpg").stat().st_size - 1000
    url = f"part://1000-{size}.jpg::{server.url}/image.jpg"
    answer = probe(url)
    assert answer["lacks"] == "source"
    assert "copy the file to a storage that gives ranges" in answer["message"]
