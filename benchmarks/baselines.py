"""Two other ways to encode a corpus, for `overhead.py`: a trainer's loop, and a plain script on Ray Data.

Both use the encoder, decoder and dtype of the pipeline that they are compared with, and store its latents.
Neither checks, resumes or records a failure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its common name

from latentcache.encoders import resolve
from latentcache.encoders.protocol import Encoder


def build(section: Mapping[str, Any]) -> Encoder:
    """Return the encoder of a configuration's section, on the CPU."""
    module, config = resolve(section)
    spec = module.describe(config, dtype="bfloat16")
    return module.build(config, spec=spec, device=torch.device("cpu"))


def decode(path: str, frames: int, size: tuple[int, int], threads: int = 1) -> torch.Tensor:
    """Decode the first frames to uint8 [1, T, H, W, 3], resized with antialiasing.

    threads: as decord takes them; 0 is its default, a thread for each core.
    """
    reader = decord.VideoReader(path, num_threads=threads)
    pixels = torch.from_numpy(reader.get_batch(range(frames)).asnumpy()).permute(0, 3, 1, 2)
    small = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1)[None].contiguous()


def loop_s(
    encoder: Encoder, videos: Sequence[Path], folder: Path, frames: int, size: tuple[int, int]
) -> tuple[float, float]:
    """Run the loop that trainers have: decode, encode and write one file per clip, in turn.

    Decoder, resizing and encoder each have all cores, one after the other. Returns seconds on the clock,
    and CPU seconds.
    """
    folder.mkdir(exist_ok=True)
    started, cpu = time.perf_counter(), time.process_time()
    for number, path in enumerate(videos):
        latents = encoder.encode(decode(str(path), frames, size, threads=0))[0].to(torch.bfloat16)
        torch.save(latents, folder / f"{number}.pt")
    return time.perf_counter() - started, time.process_time() - cpu


class _Vae:
    """An actor of Ray Data's."""

    def __init__(
        self, section: Mapping[str, Any], frames: int, size: tuple[int, int], threads: int
    ) -> None:
        torch.set_num_threads(threads)  # Ray allows a single one
        self._encoder = build(section)
        self._frames, self._size = frames, size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for path in batch["video"]:
            latents = self._encoder.encode(decode(str(path), self._frames, self._size))[0]
            rows.append(latents.to(torch.bfloat16).view(torch.int16).numpy())
        return {"video": batch["video"], "latents": np.stack(rows)}


def ray_data_s(
    section: Mapping[str, Any],
    videos: Sequence[Path],
    folder: Path,
    frames: int,
    size: tuple[int, int],
    *,
    threads: int,
) -> float:
    """Seconds of a plain script on Ray Data: read, `map_batches` on one actor, write Parquet.

    The start of its actor and the loading of the model count, as they do not for the others.
    """
    import ray

    started = time.perf_counter()
    ray.data.from_items([{"video": str(path)} for path in videos]).map_batches(
        _Vae,
        fn_constructor_args=(section, frames, size, threads),
        concurrency=1,
        batch_size=4,
    ).write_parquet(str(folder))
    return time.perf_counter() - started
