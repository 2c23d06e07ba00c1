"""Memory format, compilation and TF32: what they change, what they leave, and what the recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.encoders import inference
from latentcache.encoders.difference import difference
from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.kernels import PLAIN, Kernels, choose
from latentcache.errors import ConfigError
from tests.tools.diffusers_tools import built, identity, pixels
from tests.tools.synthetic import make_spec
from tests.tools.tiny_models import save

#: Rounding of bfloat16, which has 8 bits, through the layers of a tiny model.
BFLOAT16 = 0.05


@pytest.mark.parametrize(
    ("asked", "dtype", "got"),
    [
        ("auto", "bfloat16", "channels_last"),
        ("auto", "float16", "channels_last"),
        ("auto", "float32", "contiguous"),
        ("channels_last", "float32", "channels_last"),
        ("contiguous", "bfloat16", "contiguous"),
    ],
)
def test_auto_is_decided_by_the_dtype_alone(asked: str, dtype: str, got: str) -> None:
    chosen = choose(asked, compiled=False, tf32=False, dtype=dtype)  # type: ignore[arg-type]
    assert chosen.memory_format == got


def test_a_recipe_names_what_is_not_plain_and_nothing_else() -> None:
    assert PLAIN.identity() == {}
    chosen = Kernels(memory_format="channels_last", compile=True, tf32=True)
    assert chosen.identity() == {"memory_format": "channels_last", "compile": True, "tf32": True}


def test_tf32_is_refused_where_nothing_is_in_float32() -> None:
    with pytest.raises(ConfigError, match=r"encoder.tf32: .* encoder.dtype is bfloat16"):
        choose("auto", compiled=False, tf32=True, dtype="bfloat16")


def test_difference_is_relative_to_the_spread_of_the_latents() -> None:
    spec = make_spec()
    expected = torch.randn(1, spec.channels, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = expected - expected.mean((-3, -2, -1), keepdim=True)
    found = difference(spec, expected, expected + spread / 4)
    assert found == pytest.approx(0.25)
    assert difference(spec, expected, expected) == 0
    assert difference(spec, torch.ones_like(expected), expected) is None
    assert difference(spec, expected, torch.full_like(expected, torch.inf)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "cogvideox", "kl", "tiny"])
def test_channels_last_changes_rounding_alone_and_can_be_compared_with_plain(
    name: str, tmp_path: Path
) -> None:
    model = save(name, tmp_path)
    plain = built(model, name, dtype="bfloat16")
    last = built(model, name, dtype="bfloat16", memory_format="auto")
    clip = pixels(1, size=(64, 96))
    expected, got = plain.encode(clip), last.encode(clip)
    found = difference(plain.spec, expected, got)
    assert found is not None
    assert found < BFLOAT16
    assert torch.equal(last.encode_plain(clip), expected)
    assert torch.equal(last.encode(clip), got)
    weights = [p for p in last._vae.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    kept = identity(model, name, dtype="bfloat16")
    assert identity(model, name, dtype="bfloat16", memory_format="contiguous") == kept
    assert identity(model, name, dtype="bfloat16", memory_format="auto") == {
        **kept,
        "memory_format": "channels_last",
    }


@pytest.mark.slow
def test_pixels_reach_the_model_in_the_memory_format_of_the_recipe(tmp_path: Path) -> None:
    model, clip = save("wan", tmp_path), pixels(5, size=(64, 96))
    found = {}
    for layout in ("contiguous", "channels_last"):
        encoder = built(model, "wan", memory_format=layout)
        seen: list[bool] = []

        def look(_: object, inputs: tuple[torch.Tensor, ...], seen: list[bool] = seen) -> None:
            seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last_3d))

        encoder._vae.encoder.register_forward_pre_hook(look)
        encoder.encode(clip)
        found[layout] = seen[0]
    assert found == {"contiguous": False, "channels_last": True}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)  # a C++ compiler runs for each of some dozens of kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of torch's own imports
def test_a_compiled_encoder_gives_bits_that_do_not_depend_on_what_came_before(
    tmp_path: Path,
) -> None:
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    model = save("tiny", tmp_path, **blocks)
    sizes = [(64, 96), (32, 64)]
    clips = [pixels(1, size=size) for size in sizes]
    plain = [built(model, "tiny").encode(clip) for clip in clips]
    forward = built(model, "tiny", compile=True)
    found = [forward.encode(clip) for clip in clips]
    assert num_compiled() == len(sizes)  # else this compares plain kernels with plain kernels
    torch._dynamo.reset()
    backward = built(model, "tiny", compile=True)
    again = [backward.encode(clip) for clip in reversed(clips)][::-1]
    for expected, one, other, clip in zip(plain, found, again, clips, strict=True):
        assert torch.equal(one, other)
        distance = difference(forward.spec, expected, one)
        assert distance is not None
        assert distance < 1e-4
        assert torch.equal(forward.encode_plain(clip), expected)


def num_compiled() -> int:
    """Return how many graphs torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


#: How a process may have set how float32 is computed, by torch's newer and older settings.
SETTINGS = [
    ("backends.cudnn.allow_tf32", True),  # as torch begins
    ("backends.fp32_precision", "tf32"),
    ("backends.fp32_precision", "ieee"),
    ("backends.fp32_precision", "bf16"),
    ("backends.cudnn.fp32_precision", "tf32"),
    ("backends.cuda.matmul.fp32_precision", "tf32"),
    ("backends.cuda.matmul.fp32_precision", "ieee"),
    ("backends.cudnn.conv.fp32_precision", "ieee"),
    ("backends.cudnn.rnn.fp32_precision", "ieee"),
    ("backends.mkldnn.matmul.fp32_precision", "bf16"),
    ("backends.cuda.matmul.allow_tf32", True),
    ("backends.cudnn.allow_tf32", False),
    ("set_float32_matmul_precision", "high"),
    ("set_float32_matmul_precision", "medium"),
]
has_newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def float32_settings() -> list[object]:
    """Return all settings, in torch's order; of an older one that contradicts a newer one only that."""
    older = [
        inference._readable(torch.get_float32_matmul_precision),
        inference._readable(lambda: torch.backends.cuda.matmul.allow_tf32),
        inference._readable(lambda: torch.backends.cudnn.allow_tf32),
    ]
    return [*older, *(setting.fp32_precision for setting, _ in inference._newer())]


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting[0]}={setting[1]}")
def _as_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set how float32 is computed as a process may have done; afterwards all is as torch begins."""
    name, value = request.param
    if name.endswith("fp32_precision") and not has_newer:
        pytest.skip("this torch has only the older settings")
    before = float32_settings()
    if name == "set_float32_matmul_precision":
        torch.set_float32_matmul_precision(value)
    else:
        owner, _, attribute = name.rpartition(".")
        setattr(attrgetter(owner)(torch), attribute, value)
    yield
    backends: Any = torch.backends
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    if has_newer:
        backends.fp32_precision = backends.cudnn.fp32_precision = "none"
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"
    assert float32_settings() == before


@pytest.mark.usefixtures("_as_set")
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_used_inside_alone_and_only_where_it_is_asked_for(tf32: bool) -> None:
    before = float32_settings()
    with exact_kernels(torch.device("cuda"), tf32=tf32):
        newer = [setting.fp32_precision for setting, _ in inference._newer()[:-1]]
        assert set(newer) <= {"tf32" if tf32 else "ieee"}
        if before[0] is not None:  # else torch.compile has the same trouble without us
            assert torch.backends.cuda.matmul.allow_tf32 == tf32
        if before[2] is not None:
            assert torch.backends.cudnn.allow_tf32 == tf32
    assert float32_settings() == before


@pytest.mark.skipif(not has_newer, reason="this torch has only the older settings")
def test_what_inherits_how_float32_is_computed_goes_on_inheriting_it() -> None:
    backends: Any = torch.backends
    backends.fp32_precision = "tf32"
    try:
        with exact_kernels(torch.device("cuda")):
            pass
        backends.fp32_precision = "ieee"
        assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        backends.fp32_precision, backends.cudnn.allow_tf32 = "none", True


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [True, False])
def test_a_torch_with_only_the_older_settings_is_asked_for_no_newer_ones(
    name: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: Any = torch.backends
    with monkeypatch.context() as patch:
        patch.setattr(inference, "_newer", list)
        torch.set_float32_matmul_precision(name)
        with exact_kernels(torch.device("cuda"), tf32=tf32):
            assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == name
        assert backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    if has_newer:
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


def test_convolutions_are_deterministic_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "enabled", False)
    with exact_kernels(torch.device("cuda")):
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == (True, False, True)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == (False, True, False)
