"""Batches on their way to a device: the same latents as on the CPU, bit for bit where it is one."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentcache.core import posterior
from latentcache.core.dtypes import as_numpy
from latentcache.errors import ConfigError
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.loader.targets import CpuTarget, DeviceTarget
from latentcache.reading.loader.transform import Transform
from latentcache.reading.views.window import Window
from tests.tools.synthetic import Synthetic, make_spec, write_cache

CPU = torch.device("cpu")
STORED = (8, 2, 4, 6)
OPTIONS = [
    dict(zip(("stored", "posterior", "normalise", "dtype"), values, strict=True))
    for values in itertools.product(
        ("moments", "mean"), ("sample", "mode"), (True, False), (None, torch.float32)
    )
]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def make_transform(stored: str = "moments", **options: Any) -> Transform:
    defaults = {"posterior": "sample", "normalise": True, "dtype": None, "seed": 3}
    channels = STORED[0] // 2 if stored == "moments" else STORED[0]
    return Transform(make_spec("bfloat16", stored, channels), **{**defaults, **options})


def run(target: Any, stored: torch.Tensor, keys: list[str]) -> torch.Tensor:
    """Stage a batch as the loader does, in two parts."""
    staged = target.stage(len(stored), tuple(stored.shape[1:]))
    for where in ([2, 0], [1]):
        rows = staged.rows(where)
        for row, n in zip(rows, where, strict=True):
            row.copy_(stored[n])
        staged.done(rows, where, [keys[n] for n in where], [5] * len(where))
    return staged.finish().take()


def samples() -> torch.Tensor:
    return torch.randn(3, *STORED, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_a_device_gets_what_the_cpu_gets(options: dict[str, Any]) -> None:
    transform, memory, keys = make_transform(**options), Recycler(0), ["a", "b", "c"]
    here = run(CpuTarget(transform, memory), samples(), keys)
    there = run(DeviceTarget(CPU, transform, memory), samples(), keys)
    assert here.dtype == there.dtype == (options["dtype"] or torch.bfloat16)
    assert here.is_contiguous()
    assert there.is_contiguous()
    assert torch.equal(here, there)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("draw", ["sample", "mode"])
def test_the_latents_are_those_of_the_plain_functions(draw: str, normalise: bool) -> None:
    transform = make_transform(posterior=draw, normalise=normalise, dtype=torch.float32)
    found = run(CpuTarget(transform, Recycler(0)), samples(), ["a", "b", "c"])
    mean, logvar = posterior.split(samples())
    seeds = [posterior.sample_seed(3, 5, key) for key in "abc"]
    expected = mean.float() if draw == "mode" else posterior.sample(mean, logvar, seeds)
    if normalise:
        expected = posterior.normalise(expected, make_spec(channels=STORED[0] // 2).normaliser)
    assert torch.equal(found, expected)


def test_memory_is_counted_as_it_is_taken() -> None:
    sample_bytes = np.prod(STORED) * 2
    plain = make_transform("mean", normalise=False)
    assert CpuTarget(plain, Recycler(0)).held_bytes(3, STORED) == 3 * sample_bytes
    drawn = make_transform(dtype=torch.float32)  # half the channels in twice the bytes, and moments
    assert CpuTarget(drawn, Recycler(0)).held_bytes(3, STORED) == 6 * sample_bytes
    # Latents and their noise are made on the device, and take nothing of the host's memory.
    assert DeviceTarget(CPU, drawn, Recycler(0)).held_bytes(3, STORED) == 3 * sample_bytes


def test_a_device_that_is_not_there_is_refused(written: Synthetic) -> None:
    with pytest.raises(ConfigError, match="device='gpu' is not a device to be used here"):
        LatentLoader(written.url, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(
            ConfigError, match=r"device='cuda' is not there: torch .* sees no CUDA GPU"
        ):
            LatentLoader(written.url, device="cuda")
    assert LatentLoader(written.url).device == CPU


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("moments")), stored="moments", codec="none")


@pytest.mark.slow
def test_the_loader_takes_another_device(written: Synthetic) -> None:
    here = list(LatentLoader(written.url, batch_size=2))
    there = list(LatentLoader(written.url, batch_size=2, device="meta"))
    assert [b["key"] for b in here] == [b["key"] for b in there]
    for batch, expected in zip(there, here, strict=True):
        assert batch["latents"].device.type == "meta"
        assert batch["latents"].shape == expected["latents"].shape
        assert batch["latents"].dtype == expected["latents"].dtype


@pytest.mark.slow
def test_values_per_frame_of_a_view_go_to_the_device_too(tmp_path: Path) -> None:
    write_cache(str(tmp_path), by_frame=True, segment=lambda _, __: 0)
    for view in (None, Window(1)):
        batch = next(iter(LatentLoader(str(tmp_path), batch_size=2, device="meta", view=view)))
        assert batch["segment"].device.type == batch["latents"].device.type == "meta"


@pytest.mark.slow
def test_a_loader_with_a_device_pickles(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2, device="meta")
    list(loader)
    again = pickle.loads(pickle.dumps(loader))
    assert again.device.type == "meta"
    assert len(list(again)) == len(loader)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_cuda_in_a_dataloaders_worker_is_refused(written: Synthetic) -> None:
    loader = LatentLoader(written.url, batch_size=2)
    loader.device = torch.device("cuda")
    data = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ConfigError, match=r"worker of a DataLoader .* Leave device out"):
        list(data)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_without_the_check_a_changed_byte_comes_through_or_does_not_decompress(
    codec: str, tmp_path: Path
) -> None:
    cache = write_cache(str(tmp_path), codec=codec, buckets={"5x32x32": 1}, shard_clips=1)
    (path,) = (tmp_path / "latents/5x32x32").rglob("c/0/0/0/0/0")
    chunk = open_cache(cache.url).rows("5x32x32", 0).chunks[0]
    data = bytearray(path.read_bytes())
    data[chunk.offset + chunk.length - 1] ^= 1
    path.write_bytes(data)
    loader = LatentLoader(cache.url, normalise=False, check=False)
    if codec == "none":
        (batch,) = loader
        (expected,) = cache.arrays.values()
        different = as_numpy(batch["latents"])[0].view(np.uint8) != expected.view(np.uint8)
        assert different.sum() == 1
    loader.check = True
    with pytest.raises(Exception, match="fail their CRC32C"):
        list(loader)


# On a GPU


@CUDA
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_cuda_gets_what_the_cpu_gets(options: dict[str, Any]) -> None:
    transform, memory, keys = make_transform(**options), Recycler(0), ["a", "b", "c"]
    here = run(CpuTarget(transform, memory), samples(), keys)
    there = run(DeviceTarget(torch.device("cuda"), transform, memory), samples(), keys)
    assert there.device.type == "cuda"
    if transform.draws:  # `exp` differs in its last bit
        torch.testing.assert_close(
            there.cpu(), here, rtol=1e-2 if here.itemsize == 2 else 1e-6, atol=1e-6
        )
    else:
        assert torch.equal(there.cpu(), here)


@CUDA
def test_batches_on_a_gpu_are_sound_while_it_is_busy(tmp_path: Path) -> None:
    cache = write_cache(
        str(tmp_path), codec="none", buckets={"49x240x320": 48}, shard_clips=8, channels=16
    )
    options = {"batch_size": 4, "prefetch_bytes": 1 << 23, "num_threads": 4}
    expected = {k: torch.from_numpy(a.view(np.int16)) for k, a in cache.arrays.items()}
    loader = LatentLoader(cache.url, device="cuda", normalise=False, **options)
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        for batch in loader:
            busy = (busy @ busy).clamp(-1, 1)  # the copies of the next batches overlap with this
            late = batch["latents"].clone()
            found = late.view(torch.int16).cpu()
            for key, latents in zip(batch["key"], found, strict=True):
                assert torch.equal(latents, expected[key])
