"""Other batches than the configuration's, tried on clips of noise: how fast, and with how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.core.devices import resolve_device
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.encoders import out_of_memory
from latentcache.encoders.batching import AUTO_CLIPS, Batching
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.tiled import TiledEncoder
from latentcache.running.start import loaded

Setting = Literal["encoder.batch", "encoder.tiling.batch"]
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Another way to encode clips of a bucket: clips or tiles at once; None is one clip untiled.

    clip_s: seconds a clip, None where the GPU has no memory for it. peak_bytes: that encoding takes at the
    most beside the model: tensors on a GPU, else of the process; None where the system does not say.
    """

    setting: Setting
    bucket: str
    batch: int | None
    clip_s: float | None
    peak_bytes: int | None


def try_batches(
    config: Config, spec: LatentSpec, buckets: Iterable[str], *, shard_clips: int
) -> list[Trial]:
    """Encode noise of each bucket with 1, 2, 4, ... clips at once, and with as many tiles.

    On a GPU as many as fit, and untiled. On a CPU, which has no limit to fail at, as many clips as
    `encoder.batch: auto` takes. Empty where there is nothing to choose. shard_clips: of the real cache.
    """
    device = resolve_device(config.run.device, "run.device")
    clips = {
        bucket: _clip_batches(bucket, device, shard_clips) for bucket in map(Bucket.parse, buckets)
    }
    if "tiling" not in config.encoder and not any(clips.values()):
        return []
    module, encoder_config = encoders.resolve(config.encoder)
    encoder = loaded(lambda: module.build(encoder_config, spec=spec, device=device), config.run)
    found: list[Trial] = []
    for bucket, ways in clips.items():
        found += _try_tiles(encoder, bucket, device)
        found += _try_clips(encoder, bucket, ways, device)
    return found


def _clip_batches(bucket: Bucket, device: torch.device, shard_clips: int) -> list[int]:
    """Return the clips at once to try; none where there is only one way."""
    most = AUTO_CLIPS
    if device.type != "cuda":
        most = Batching(batch="auto").clips_at_once(bucket)
    ways = _powers(min(most, shard_clips))
    return ways if len(ways) > 1 else []


def _powers(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`."""
    return [1 << power for power in range(most.bit_length())]


def _try_clips(
    encoder: Encoder, bucket: Bucket, ways: list[int], device: torch.device
) -> Iterator[Trial]:
    for batch in ways:
        trial = _try("encoder.batch", encoder, bucket, batch, _noise(bucket, batch), device)
        yield trial
        if trial.clip_s is None:
            return  # nor do more fit


def _try_tiles(encoder: Encoder, bucket: Bucket, device: torch.device) -> Iterator[Trial]:
    size = (bucket.frames, bucket.height, bucket.width)
    if not isinstance(encoder, TiledEncoder) or encoder.is_whole(*size):
        return
    setting: Setting = "encoder.tiling.batch"
    for batch in _tile_batches(encoder, size):
        section = encoder.tiling.model_copy(update={"batch": batch})
        tried = TiledEncoder(encoder.untiled, encoder.spec, section)
        yield _try(setting, tried, bucket, batch, _noise(bucket, 1), device)
    if device.type == "cuda":  # a CPU has no memory limit to fail at: it would be killed
        yield _try(setting, encoder.untiled, bucket, None, _noise(bucket, 1), device)


def _tile_batches(encoder: TiledEncoder, size: Size) -> list[int]:
    over_time, over_height, over_width = encoder.spans(*size)
    num_tiles = len(over_time) * len(over_height) * len(over_width)
    return [1 << power for power in range((num_tiles - 1).bit_length() + 1)]


def _noise(bucket: Bucket, clips: int) -> torch.Tensor:
    """Return uint8 pixels [B, T, H, W, 3]."""
    shape = (clips, bucket.frames, bucket.height, bucket.width, 3)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def _try(
    setting: Setting,
    encoder: Encoder,
    bucket: Bucket,
    batch: int | None,
    pixels: torch.Tensor,
    device: torch.device,
) -> Trial:
    clip_s = peak_bytes = None
    if out_of_memory.try_encode(encoder, pixels) is not None:  # the first one warms up
        before = _reset_peak(device)
        started = time.perf_counter()
        out_of_memory.encode(encoder, pixels).cpu()
        clip_s = (time.perf_counter() - started) / len(pixels)
        peak_bytes = _beyond(before, device)
    return Trial(
        setting=setting, bucket=bucket.name, batch=batch, clip_s=clip_s, peak_bytes=peak_bytes
    )


def _reset_peak(device: torch.device) -> int | None:
    """Let the high-water mark of memory begin again; returns the bytes that are taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # another system, or one that does not allow it
        return None
    return _of_process("VmRSS")


def _beyond(before: int | None, device: torch.device) -> int | None:
    """Return how far the high-water mark is above what was taken before."""
    if before is None:
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    return max(0, _of_process("VmHWM") - before)


def _of_process(name: str) -> int:
    """Return bytes that Linux says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value) << 10
