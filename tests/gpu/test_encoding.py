"""Encoding on a GPU: pinned memory and streams, too little memory, batches, compilation, and noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from latentcache.core import posterior
from latentcache.encoders import out_of_memory, resolve
from latentcache.encoders.difference import difference
from latentcache.encoders.diffusers.encoder import DiffusersEncoder
from latentcache.errors import EncoderError
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.targets import DeviceTarget
from latentcache.reading.loader.transform import Transform
from latentcache.running.transfer import CudaTransfer, HostTransfer, Staging, transfer_for
from tests.running.test_shard_encoder import Means, encode
from tests.tools.diffusers_tools import built, pixels, section
from tests.tools.synthetic import make_spec
from tests.tools.tiny_models import save

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"),
]
CUDA = torch.device("cuda")
SIZE = (64, 96)
#: Of latents between two sums in another order, in float32, over their standard deviation.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("wan", tmp_path_factory.mktemp("wan"))


def on_gpu(model: Path, name: str = "wan", **changes: object) -> DiffusersEncoder:
    module, config = resolve(section(model, name, **changes))
    spec = module.describe(config, dtype="float32")
    encoder = module.build(config, spec=spec, device=CUDA)
    assert isinstance(encoder, DiffusersEncoder)
    return encoder


def assert_near(encoder: DiffusersEncoder, found: torch.Tensor, expected: torch.Tensor) -> None:
    distance = difference(encoder.spec, expected.cpu(), found.cpu())
    assert distance is not None
    assert distance < ROUNDING


def test_staging_memory_is_pinned_and_its_slots_take_turns() -> None:
    staging = Staging(2, pinned=True)
    taken = [staging.take((3, 4)) for _ in range(4)]
    assert all(each.is_pinned() for each in taken)
    places = [each.data_ptr() for each in taken]
    assert places[:2] == places[2:]
    assert places[0] != places[1]


def test_an_encoder_on_a_gpu_gets_its_pixels_there_and_one_on_the_cpu_here(wan: Path) -> None:
    transfer = transfer_for(on_gpu(wan), CUDA)
    clip = pixels(5, size=SIZE)
    assert isinstance(transfer, CudaTransfer)
    assert transfer.to_encoder(clip.pin_memory()).device.type == "cuda"
    assert isinstance(transfer_for(built(wan, "wan"), torch.device("cpu")), HostTransfer)


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_of_a_shard_are_their_own_while_the_gpu_is_busy(batch: int) -> None:
    """A staging slot that is filled too early would give a row the pixels of another one."""
    expected, _ = encode(Means(), batch, num=40)
    busy = torch.randn(4096, 4096, device=CUDA)
    for _ in range(8):
        busy = (busy @ busy).clamp(-1, 1)
    transfer = CudaTransfer(CUDA, takes_device_pixels=True)
    found, _ = encode(Means(), batch, num=40, transfer=transfer)  # type: ignore[arg-type]
    assert [row is None for row in found.rows] == [row is None for row in expected.rows]
    for row, other in zip(found.rows, expected.rows, strict=True):
        if row is not None and other is not None:
            torch.testing.assert_close(torch.from_numpy(row), torch.from_numpy(other))


def test_latents_of_a_gpu_are_those_of_the_cpu_and_the_same_each_time(wan: Path) -> None:
    encoder, clip = on_gpu(wan), pixels(5, size=SIZE)
    found = encoder.encode(clip)
    assert torch.equal(found, encoder.encode(clip.to(CUDA)))
    assert_near(encoder, found, built(wan, "wan").encode(clip))


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_latents_do_not_depend_on_how_the_process_computes_float32(wan: Path) -> None:
    encoder, clip, backends = on_gpu(wan), pixels(5, size=SIZE), cast("Any", torch.backends)
    expected = encoder.encode(clip)
    backends.fp32_precision = "tf32"
    try:
        assert torch.equal(encoder.encode(clip), expected)
    finally:
        backends.fp32_precision = "none"


def test_a_batch_has_the_latents_of_its_clips(wan: Path) -> None:
    encoder = on_gpu(wan)
    clips = [torch.roll(pixels(5, size=SIZE), n, dims=3) for n in range(4)]
    found = encoder.encode(torch.cat(clips))
    assert torch.equal(found, encoder.encode(torch.cat(clips)))
    for one, clip in zip(found, clips, strict=True):
        assert_near(encoder, one[None], encoder.encode(clip))


@pytest.fixture
def little_memory() -> Iterator[int]:
    """Leave this process 256 MiB more than it has; returns the bytes it may take in all."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    allowed = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    yield allowed
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_too_large_a_batch_names_one_that_fits(wan: Path, little_memory: int) -> None:
    encoder = on_gpu(wan)
    one = pixels(5, size=(128, 128))
    batch = one.expand(1 << 12, -1, -1, -1, -1)
    with pytest.raises(
        EncoderError, match=r"no GPU memory for 4096 clips .*encoder.batch: \d+ fits"
    ):
        out_of_memory.encode(encoder, batch)
    assert torch.cuda.memory_allocated() < little_memory
    assert torch.isfinite(encoder.encode(one)).all()  # and it goes on


def test_too_large_a_clip_names_a_tile_that_fits(wan: Path, little_memory: int) -> None:
    encoder = on_gpu(wan)
    clip = torch.zeros(1, 5, 4096, 4096, 3, dtype=torch.uint8)
    with pytest.raises(EncoderError, match=r"encoder.tiling.tile: \[\d+, \d+\] fits"):
        out_of_memory.encode(encoder, clip)
    assert torch.cuda.memory_allocated() < little_memory


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of torch's own imports
def test_a_compiled_encoder_has_the_latents_of_the_plain_one(wan: Path) -> None:
    encoder, clip = on_gpu(wan, compile=True), pixels(5, size=SIZE)
    found = encoder.encode(clip)
    assert torch.equal(found, encoder.encode(clip))
    expected = on_gpu(wan).encode(clip)
    assert torch.equal(encoder.encode_plain(clip), expected)
    assert_near(encoder, found, expected)


def test_noise_has_the_same_bits_on_a_gpu() -> None:
    """With mean 0 and variance 1 a sample is its noise: `exp` is exact there."""
    keys, shape = ["a", "b", "c"], (8, 2, 4, 6)
    spec = make_spec("float32", "moments", shape[0] // 2)
    transform = Transform(spec, posterior="sample", normalise=False, dtype=torch.float32, seed=3)
    target = DeviceTarget(CUDA, transform, Recycler(0))
    staged, where = target.stage(len(keys), shape), list(range(len(keys)))
    rows = staged.rows(where)
    for row in rows:
        row.zero_()
    staged.done(rows, where, keys, [5] * len(keys))
    found = staged.finish().take()
    zeros = torch.zeros(len(keys), shape[0] // 2, *shape[1:])
    seeds = [posterior.sample_seed(3, 5, key) for key in keys]
    assert torch.equal(found.cpu(), posterior.sample(zeros, zeros, seeds))
