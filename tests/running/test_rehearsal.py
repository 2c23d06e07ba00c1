"""What a worker takes of a GPU's memory is measured with all that it does: comparisons, and long clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentcache import encoders
from latentcache.config.files import load_config
from latentcache.core.records import Bucket
from latentcache.encoders.batching import Batching
from latentcache.encoders.kernels import Kernels
from latentcache.encoders.tiled import TiledEncoder, Tiling
from latentcache.errors import EncoderError
from latentcache.running import gpu_sharing, long_clips, rehearsal
from latentcache.running.gpu_sharing import CONTEXT_BYTES, GpuNeed
from latentcache.running.transfer import HostTransfer
from latentcache.running.worker import WorkerSpec
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config
from tests.tools.synthetic import make_manifest, make_spec

#: Bytes of memory per pixel.
ENCODE, PLAIN, DECODE = 10, 15, 30
FRAMES, HEIGHT, WIDTH = 5, 64, 96
BUCKET = Bucket(frames=FRAMES, height=HEIGHT, width=WIDTH)
CLIP = FRAMES * HEIGHT * WIDTH * 3


class Peaks:
    """An encoder that notes the largest memory that it was asked to take, as torch does for a process."""

    def __init__(self, fits: int | None = None, **kernels: Any) -> None:
        self.spec = make_spec("float32", stored="mean")
        self.kernels = Kernels(**kernels)
        self.peak = 0
        self.sizes: list[int] = []
        self._fits = fits

    def _take(self, num_bytes: int) -> None:
        if self._fits is not None and num_bytes > self._fits:
            raise torch.OutOfMemoryError
        self.peak = max(self.peak, num_bytes)

    def _encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        shape = self.spec.latent_shape(*pixels_BTHWC.shape[1:4])
        return torch.zeros(len(pixels_BTHWC), *shape)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels_BTHWC))
        self._take(ENCODE * pixels_BTHWC.numel())
        return self._encode(pixels_BTHWC)

    def encode_plain(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self._take(PLAIN * pixels_BTHWC.numel())
        return self._encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        self._take(DECODE * CLIP)
        return torch.zeros(1, FRAMES, HEIGHT, WIDTH, 3, dtype=torch.uint8)


def measured(
    built: Any,
    peaks: Peaks,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shard_clips: int = 9,
    **sections: dict[str, Any],
) -> GpuNeed:
    """Measure for a configuration, as if there were a GPU; `built` is its encoder, and takes `peaks`."""
    config = load_config(str(make_config(tmp_path, tmp_path, "memory://none", **sections)))
    manifest = make_manifest(spec=peaks.spec, buckets={BUCKET.name: 20}, shard_clips=shard_clips)
    module = SimpleNamespace(build=lambda *_, **__: built)
    monkeypatch.setattr(encoders, "resolve", lambda _: (module, None))
    monkeypatch.setattr(rehearsal, "transfer_for", lambda *_: HostTransfer())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 36, 1 << 36))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *_: peaks.peak)
    return gpu_sharing.measure(
        WorkerSpec(config=config, manifest=manifest, storage=Storage("memory://none"))
    )


@pytest.mark.parametrize(
    ("kernels", "every", "expected"),
    [
        ({}, 0, ENCODE * CLIP),
        ({}, 256, DECODE * CLIP),
        ({"compile": True}, 0, PLAIN * CLIP),
        ({"compile": True}, 256, DECODE * CLIP),
    ],
)
def test_comparisons_count_where_they_are_made(
    kernels: dict[str, Any],
    every: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    encoder = Peaks(**kernels)
    quality = {"every": every}
    need = measured(encoder, encoder, monkeypatch, tmp_path, quality=quality)
    assert need.worker_bytes == expected + CONTEXT_BYTES


@pytest.mark.parametrize(("measure", "pixels"), [(0, 32 * 32), (1, HEIGHT * WIDTH)])
def test_a_clip_that_is_encoded_untiled_counts(
    measure: int, pixels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks = Peaks()
    tiling = Tiling(tile=(32, 32), overlap=(8, 8), measure=measure)
    tiled = TiledEncoder(peaks, peaks.spec, tiling)
    quality = {"every": 0}
    need = measured(tiled, peaks, monkeypatch, tmp_path, quality=quality)
    assert need.worker_bytes == ENCODE * FRAMES * pixels * 3 + CONTEXT_BYTES


class Streaming(Peaks):
    """Takes a clip in groups of frames."""

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        for group in groups:
            self._take(ENCODE * group.numel())
        yield torch.zeros(1, *self.spec.latent_shape(frames, HEIGHT, WIDTH))


def test_a_long_clip_counts_by_its_groups_of_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(long_clips, "LONG_BYTES", CLIP - 1)
    monkeypatch.setattr(long_clips, "PIECE_BYTES", 2 * CLIP // FRAMES)
    encoder = Streaming()
    need = measured(encoder, encoder, monkeypatch, tmp_path)
    assert need.worker_bytes == ENCODE * 2 * CLIP // FRAMES + CONTEXT_BYTES
    assert not encoder.sizes


@pytest.mark.parametrize(("shard_clips", "batches"), [(9, [3, 3]), (4, [3, 1])])
def test_two_batches_are_under_way_unless_a_shard_has_fewer_clips(
    shard_clips: int, batches: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoder = Peaks()
    section = {"kind": "dct", "store": "mean", "batch": 3}
    measured(encoder, encoder, monkeypatch, tmp_path, shard_clips, encoder=section)
    assert encoder.sizes[0] == batches[0]
    assert [size for size in encoder.sizes if size > 1] == [n for n in batches if n > 1]


def test_a_gate_that_would_stop_the_run_does_not_stop_the_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoder = Peaks()
    quality = {"min_psnr": 99, "judged_clips": 1}
    need = measured(encoder, encoder, monkeypatch, tmp_path, quality=quality)
    assert need.worker_bytes == DECODE * CLIP + CONTEXT_BYTES


def test_what_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = Peaks(fits=ENCODE * CLIP - 1)
    with pytest.raises(EncoderError, match="has no GPU memory for 5 frames"):
        measured(encoder, encoder, monkeypatch, tmp_path)


def test_the_largest_clip_and_the_largest_batch_are_tried() -> None:
    image = Bucket(frames=1, height=256, width=256)
    clip = Bucket(frames=9, height=360, width=640)
    longer = Bucket(frames=17, height=360, width=640)
    buckets = [image, clip, longer]
    assert rehearsal.largest(buckets, Batching(batch=1)) == [longer]
    small = Bucket(frames=17, height=256, width=256)  # 32 images at once have more pixels
    assert rehearsal.largest([image, small], Batching(batch="auto")) == [small, image]
