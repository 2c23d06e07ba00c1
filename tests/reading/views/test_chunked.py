"""Caches of long clips whose latents are stored in chunks of frames: views read what they pick."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.manifest import Manifest
from latentcache.format.shards import get_format, ranges, zarr_index
from latentcache.inspecting.shard_check import check_shard
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.sparse import Sparse
from latentcache.reading.views.tokens import Tokens
from latentcache.reading.views.window import Window
from latentcache.storage.folder import Storage
from tests.contracts.test_pieces import index_of
from tests.tools.synthetic import Synthetic, write_cache

#: 60 s at 24 frames per second: 361 latent frames.
LONG = "1441x16x24"
CHUNK = 4
LAST = 361 // CHUNK


def long_clips(**options: Any) -> Synthetic:
    url = f"memory://{uuid.uuid4().hex}"
    return write_cache(url, buckets={LONG: 3}, chunk_frames=CHUNK, **options)


def draw(num_frames: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    order = torch.randperm(num_frames, generator=generator).tolist()
    return order[:5], order[5:20]


@pytest.mark.parametrize("stored", ["mean", "moments"])
@pytest.mark.parametrize("view", [Window(20, middle=True), Sparse(draw, at_most=20, middle=True)])
def test_a_view_equals_slicing_the_whole(stored: str, view: Any) -> None:
    cache = latentcache.open_cache(long_clips(stored=stored).url)
    for batch in LatentLoader(cache, batch_size=3, view=view):
        for key, latents, frames in zip(
            batch["key"], batch["latents"], batch["frame_indices"], strict=True
        ):
            assert torch.equal(latents, cache[key]["latents"][:, frames])


def test_ids_are_cut_alike() -> None:
    clips = long_clips(stored="ids", dtype="uint16")
    (batch,) = LatentLoader(clips.url, batch_size=3, view=Tokens(context=50))
    for key, tokens, start in zip(batch["key"], batch["tokens"], batch["start"], strict=True):
        whole = clips.arrays[key].reshape(-1)
        np.testing.assert_array_equal(tokens.numpy(), whole[start : start + 50])


def test_twenty_frames_of_a_long_clip_cost_only_the_chunks_that_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = long_clips(stored="moments")
    cache = latentcache.open_cache(clips.url)
    loader = LatentLoader(cache, batch_size=3, view=Window(20, middle=True))
    requested: list[tuple[str, int]] = []
    original = Storage.read_ranges

    def counting(self: Storage, path: str, wanted: Any) -> list[bytes]:
        requested.extend((path, length) for _, length in wanted)
        return original(self, path, wanted)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    monkeypatch.setattr(ranges, "MAX_GAP_BYTES", 0)
    (batch,) = loader
    layout = clips.manifest.layouts()[LONG]
    path = get_format("zarr").path(layout, 0)
    found = [length for name, length in requested if name == path]
    chunks = cache.rows(LONG, 0).chunks
    data = clips.storage.read(path)
    index = index_of(layout, data)
    expected = sum(
        int(index[chunks[int(key[-4:])].row, sorted({f // CHUNK for f in frames}), 1].sum())
        for key, frames in zip(batch["key"], batch["frame_indices"].tolist(), strict=True)
    )
    assert sum(found) == zarr_index.index_bytes(layout) + expected
    assert expected < sum(chunk.length for chunk in chunks) / 12


@pytest.mark.parametrize("chunk", [0, 1, LAST])
def test_verify_finds_a_flipped_byte_in_any_chunk_and_views_where_they_read_it(
    chunk: int, tmp_path: Path
) -> None:
    clips = write_cache(str(tmp_path), buckets={LONG: 3}, chunk_frames=CHUNK)
    layout = clips.manifest.layouts()[LONG]
    path = get_format("zarr").path(layout, 0)
    data = bytearray(clips.storage.read(path))
    data[int(index_of(layout, bytes(data))[1, chunk].sum()) - 9] ^= 16
    clips.storage.write(path, bytes(data))
    (problem,) = check_shard(clips.storage, clips.manifest, layout, ShardId(LONG, 0), None).problems
    assert f"'{LONG}-0001'" in problem[1]
    cache = latentcache.open_cache(clips.url)
    out = [torch.empty(4, 1, 2, 3, dtype=torch.bfloat16)]
    sound, damaged = (chunk + 1) % LAST * CHUNK, chunk * CHUNK
    cache.read(LONG, 0, [1], out, picks=[[sound]])
    whole = torch.from_numpy(clips.arrays[f"{LONG}-0001"].astype(np.float32)).bfloat16()
    assert torch.equal(out[0], whole[:, [sound]])
    with pytest.raises(CorruptionError, match=f"clip '{LONG}-0001': .* fail their CRC32C"):
        cache.read(LONG, 0, [1], out, picks=[[damaged]])
    loader = LatentLoader(cache, view=Window(361), on_damaged="skip", batch_size=3)
    (batch,) = loader
    assert sorted(batch["key"]) == [f"{LONG}-0000", f"{LONG}-0002"]


def test_short_clips_are_one_chunk() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    clips = write_cache(url, buckets={"1x16x24": 1, "9x16x24": 1, "13x16x24": 1}, chunk_frames=3)
    pieces = {name: layout.pieces for name, layout in clips.manifest.layouts().items()}
    assert pieces == {"1x16x24": 1, "9x16x24": 1, "13x16x24": 2}
    cache = latentcache.open_cache(url)
    for key, array in clips.arrays.items():
        assert cache.stored(key).view(torch.int16).numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "4"])
def test_a_changed_number_of_frames_in_cache_json_is_refused(wrong: Any) -> None:
    data = json.loads(long_clips().manifest.to_bytes())
    data = {name: value for name, value in data.items() if name != checksum.KEY}
    with pytest.raises(CacheError, match="chunk_frames"):
        Manifest.from_bytes(checksum.seal_json({**data, "chunk_frames": wrong}))
