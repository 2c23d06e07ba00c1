"""What every encoder promises: see `protocol.Encoder`. A new one is one more case: `encoder_cases`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from latentcache.core import posterior
from latentcache.core.spec import LatentSpec
from latentcache.encoders import KINDS, resolve
from latentcache.encoders.streaming import can_stream, encode_stream
from latentcache.encoders.values import of_values
from latentcache.errors import EncoderError, GeometryError
from tests.contracts.encoder_cases import Case, all_cases

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
#: Allegro takes as long as all others, for it encodes 40 frames of four tiles each time. The others are of
#: a class that another case has.
LARGE = {"allegro", "vidtok_noncausal", "taew2_2_super"}
CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.long] if case.name in LARGE else [])
    for case in all_cases()
]


@dataclass(frozen=True)
class Built:
    case: Case
    module: Any
    config: Any
    spec: LatentSpec
    encoder: Any

    def pixels(
        self, frames: int, *, batch: int = 1, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        _, sh, sw = self.spec.stride
        rows, columns = grid or self.case.grids[0]
        height, width = self.spec.fixed_size or (rows * sh, columns * sw)
        generator = torch.Generator().manual_seed(frames)
        shape = (batch, frames, height, width, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def latents(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return what `decode` takes: the mean of moments; latents and ids as they are."""
        return posterior.split(encoded)[0] if self.has_posterior(encoded) else encoded

    def has_posterior(self, encoded: torch.Tensor) -> bool:
        return self.spec.ids is None and encoded.shape[1] == 2 * self.spec.channels

    def differs(self, a: torch.Tensor, b: torch.Tensor, rounding: float | None = None) -> bool:
        """Tell whether two latents differ by more than rounding, or ids by more than ties."""
        rounding = self.case.rounding if rounding is None else rounding
        if self.spec.ids is not None:
            return bool((a != b).double().mean() > rounding)
        return bool((a - b).abs().max() > rounding)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny models spend their time between threads, where there are several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    raw = case.raw(tmp_path_factory.mktemp(case.name))
    assert raw["kind"] == case.kind
    module, config = resolve(raw)
    spec = module.describe(config, dtype="float32")
    return Built(case, module, config, spec, module.build(config, spec=spec, device=CPU))


def test_every_kind_has_a_case() -> None:
    assert {case.kind for case in all_cases()} >= set(KINDS)


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in all_cases()]
    assert sorted(set(names)) == sorted(names)


def test_built_spec_is_the_described_one(built: Built) -> None:
    assert built.encoder.spec == built.module.describe(built.config, dtype="float32")


def test_spec_survives_json(built: Built) -> None:
    assert LatentSpec.from_json(json.loads(json.dumps(built.spec.to_json()))) == built.spec


def test_identity_is_stable_json_without_paths(built: Built) -> None:
    identity = json.dumps(built.module.identity(built.config))
    assert json.dumps(built.module.identity(built.config)) == identity
    assert getattr(built.config, "model", "\0") not in identity


def test_encoded_has_the_shape_of_the_spec_and_finite_values(built: Built) -> None:
    for frames in built.case.frames:
        for grid in built.case.grids[1:]:
            pixels = built.pixels(frames, batch=2, grid=grid)
            encoded = built.encoder.encode(pixels)
            shape = built.spec.latent_shape(*pixels.shape[1:4])
            if built.spec.ids is not None:
                assert tuple(encoded.shape) == (2, *shape)
                continue
            assert tuple(encoded.shape[2:]) == shape[1:]
            assert tuple(encoded.shape[:1]) == (2,)
            assert encoded.shape[1] in (built.spec.channels, 2 * built.spec.channels)
            assert encoded.dtype == getattr(torch, built.spec.compute_dtype)
            assert torch.isfinite(encoded).all()


def test_moments_are_stored_of_encoders_that_have_a_posterior_alone(built: Built) -> None:
    encoded = built.encoder.encode(built.pixels(built.case.frames[0]))
    if built.spec.stored == "moments":
        assert built.has_posterior(encoded)
    if built.has_posterior(encoded):
        logvar = posterior.split(encoded)[1]
        assert logvar.min() >= -30
        assert logvar.max() <= 20


def test_ids_are_in_the_codebook_and_of_several_kinds(built: Built) -> None:
    if built.spec.ids is None:
        pytest.skip("gives no ids")
    ids = built.encoder.encode(built.pixels(built.case.frames[-1], batch=2))
    assert not ids.is_floating_point()
    assert ids.min() >= 0
    assert ids.max() < built.spec.ids.codebook_size
    assert len(ids.unique()) > 1


def test_same_pixels_give_the_same_bits_whatever_came_between(built: Built) -> None:
    pixels = built.pixels(built.case.frames[-1])
    first = built.encoder.encode(pixels)
    built.encoder.encode(built.pixels(built.case.frames[1], batch=2, grid=built.case.grids[1]))
    if built.case.decodes is True:
        built.encoder.decode(built.latents(first))
    assert torch.equal(built.encoder.encode(pixels), first)


def test_other_pixels_give_other_latents(built: Built) -> None:
    pixels = built.pixels(built.case.frames[0])
    assert not torch.equal(built.encoder.encode(pixels), built.encoder.encode(255 - pixels))


def test_a_clip_in_a_batch_is_the_clip_alone(built: Built) -> None:
    pixels = built.pixels(built.case.frames[-1], batch=3)
    batch = built.encoder.encode(pixels)
    for i in range(3):
        alone = built.encoder.encode(pixels[i : i + 1])[0]
        assert not built.differs(batch[i], alone, built.case.batch_rounding)


def test_a_clip_has_the_same_bits_whatever_else_is_in_its_batch(built: Built) -> None:
    """So a hole may be filled with black, and a clip that fails changes none beside it."""
    pixels = built.pixels(built.case.frames[-1], batch=3)
    batch = built.encoder.encode(pixels)
    for i in range(3):
        others_black = torch.zeros_like(pixels)
        others_black[i] = pixels[i]
        assert torch.equal(built.encoder.encode(others_black)[i], batch[i])


def test_memory_layout_of_the_pixels_does_not_matter(built: Built) -> None:
    pixels = built.pixels(built.case.frames[1], batch=2)
    strided = pixels.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    assert torch.equal(built.encoder.encode(strided), built.encoder.encode(pixels))


def test_prefixes_are_exact_if_and_only_if_declared(built: Built) -> None:
    """Every legal prefix of a clip gives the leading latents of the whole; or not every one does."""
    if built.spec.ids is not None and built.spec.ids.scales:
        pytest.skip("multi-scale ids are of one frame")
    pixels = built.pixels(built.case.frames[-1])
    whole = built.latents(built.encoder.encode(pixels))
    differences = []
    for frames in built.case.frames[:-1]:
        prefix = built.latents(built.encoder.encode(pixels[:, :frames]))
        time = prefix.ndim - 3
        differences.append(built.differs(whole.narrow(time, 0, prefix.shape[time]), prefix))
    assert any(differences) == (built.spec.exactness != "prefix_exact")


def test_latent_frames_depend_on_no_later_pixels_than_the_spec_says(built: Built) -> None:
    """Of the last two latent frames: the first and the last frame that each covers reach none before it."""
    if built.spec.exactness != "prefix_exact" or (built.spec.ids and built.spec.ids.scales):
        pytest.skip("is not causal from one latent frame to the next")
    frames = built.case.frames[-1]
    pixels = built.pixels(frames)
    before = built.latents(built.encoder.encode(pixels))
    time = before.ndim - 3
    last = before.shape[time] - 1
    for t in {last, max(0, last - 1)}:
        start, stop = built.spec.pixel_frames(t, frames)
        for frame in {start, stop - 1}:
            changed = pixels.clone()
            changed[:, frame] = 255 - changed[:, frame]
            after = built.latents(built.encoder.encode(changed))
            touched = (before != after).movedim(time, 0).flatten(1).any(1).nonzero()
            assert int(touched[0]) == t


def test_frames_are_independent_if_and_only_if_the_spec_says_so(built: Built) -> None:
    """Another first frame changes only the first latent frame; and every latent frame is of one frame."""
    if built.spec.ids is not None and built.spec.ids.scales:
        pytest.skip("multi-scale ids are of one frame")
    frames = built.case.frames[-1]
    pixels = built.pixels(frames)
    changed = pixels.clone()
    changed[:, 0] = 255 - changed[:, 0]
    before, after = (built.latents(built.encoder.encode(p)) for p in (pixels, changed))
    time = before.ndim - 3
    assert before.shape[time] > 1
    rest = before.shape[time] - 1
    touched = built.differs(before.narrow(time, 1, rest), after.narrow(time, 1, rest))
    independent = before.shape[time] == frames and not touched
    declared = built.spec.frame_independent
    # An encoder of someone's own may leave it unsaid: then middles of its clips are refused unasked.
    assert independent == declared if built.case.kind in KINDS else independent or not declared


def test_pixel_frames_of_the_latents_are_the_clip_in_order(built: Built) -> None:
    if built.spec.ids is not None and built.spec.ids.scales:
        pytest.skip("multi-scale ids are of one frame")
    time = 0 if built.spec.ids is not None else 1
    for frames in built.case.frames:
        steps = built.spec.latent_shape(*built.pixels(frames).shape[1:4])[time]
        ranges = [range(*built.spec.pixel_frames(t, frames)) for t in range(steps)]
        assert [frame for covered in ranges for frame in covered] == list(range(frames))
        assert all(ranges)


def test_illegal_frames_are_refused_with_the_nearest_legal_ones(built: Built) -> None:
    for frames, nearest in built.case.illegal_frames.items():
        assert not built.spec.frame_rule.is_legal(frames)
        with pytest.raises(GeometryError, match=rf"not {frames}.*Set clips.frames to {nearest}\."):
            built.encoder.encode(built.pixels(frames, grid=(1, 1)))


def test_sizes_off_the_stride_are_refused_with_the_nearest_legal_ones(built: Built) -> None:
    pixels = built.pixels(built.case.frames[0])
    height, width = pixels.shape[2:4]
    nearest = f"Use {height}x{width}"
    if built.spec.fixed_size is not None:
        nearest = rf"clips.size to \[{height}, {width}\]"
    if built.spec.size_rules is not None:
        nearest = f"Use a width of {width}"
    with pytest.raises(GeometryError, match=rf"{nearest}[. ]"):
        built.encoder.encode(torch.cat([pixels, pixels[:, :, :, :1]], dim=3))


@pytest.mark.parametrize("wrong", ["dtype", "axes", "colours"])
def test_what_is_not_pixels_is_refused(built: Built, wrong: str) -> None:
    pixels = built.pixels(built.case.frames[0])
    bad = {"dtype": pixels.float(), "axes": pixels[0], "colours": pixels[..., :1]}[wrong]
    with pytest.raises(EncoderError, match=r"encodes uint8 pixels \[B, T, H, W, 3\], not"):
        built.encoder.encode(bad)


def test_decode_gives_the_pixels_back_in_shape_and_dtype(built: Built) -> None:
    for frames in built.case.frames:
        pixels = built.pixels(frames, batch=2)
        latents = built.latents(built.encoder.encode(pixels))
        if isinstance(built.case.decodes, str):
            with pytest.raises(EncoderError, match=built.case.decodes):
                built.encoder.decode(latents)
            continue
        decoded = built.encoder.decode(latents)
        assert decoded.shape == pixels[:, : frames - built.case.undecoded].shape
        assert decoded.dtype == torch.uint8
        assert decoded.device == CPU


def test_encoders_without_values_are_refused_by_name(built: Built) -> None:
    if built.case.name != "plugin":
        assert of_values(built.encoder) is built.encoder
        return
    with pytest.raises(EncoderError, match="has no encode_values and no decode_values"):
        of_values(built.encoder)


def test_values_give_the_latents_of_their_pixels(built: Built) -> None:
    if built.case.name == "plugin":
        pytest.skip("is somebody's own, of pixels only")
    pixels = built.pixels(built.case.frames[1], batch=2)
    values = pixels.float() / 255 * 2 - 1
    encoded, again = built.encoder.encode(pixels), built.encoder.encode_values(values)
    if built.spec.ids is None:
        torch.testing.assert_close(again, encoded, rtol=1e-4, atol=1e-4)
    else:
        assert again.shape == encoded.shape
        assert (again != encoded).double().mean() <= 0.05  # codes near a tie
    with pytest.raises(EncoderError, match=r"encodes values in \[-1, 1\], floats"):
        built.encoder.encode_values(pixels)


def test_decoded_values_round_to_the_decoded_pixels(built: Built) -> None:
    if built.case.name == "plugin":
        pytest.skip("is somebody's own, of pixels only")
    latents = built.latents(built.encoder.encode(built.pixels(built.case.frames[1], batch=2)))
    if isinstance(built.case.decodes, str):
        with pytest.raises(EncoderError, match=built.case.decodes):
            built.encoder.decode_values(latents)
        return
    values = built.encoder.decode_values(latents)
    assert values.dtype == torch.float32
    assert values.abs().max() <= 1
    levels = (values.double() + 1) * (255 / 2)
    assert (levels - built.encoder.decode(latents)).abs().max() <= 0.5 + 1e-3
    assert (levels - levels.round()).abs().max() > 0.01  # between the levels of uint8


#: Encoders that see a clip in groups of frames, beside all that take each frame by itself.
STREAMED = {
    "dct",
    "ivvae",
    "taehv",
    "wan",
    "qwen",
    "cogvideox",
    "magvit",
    "vqgan",
    "llamagen",
    "openmagvit2image",
}


def in_groups(pixels: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield groups in one memory, as decoding processes hand them over."""
    memory = torch.empty_like(pixels[:, :size])
    for group in torch.split(pixels, size, dim=1):
        yield memory[:, : group.shape[1]].copy_(group)
    memory.fill_(0)


def test_streamed_latents_are_those_of_the_whole_bit_for_bit(built: Built) -> None:
    if not can_stream(built.encoder):
        name = built.case.name
        assert not any(name.replace("_", "").startswith(known) for known in STREAMED - {"magvit"})
        pytest.skip("sees the whole clip at once")
    for frames in built.case.frames:
        pixels = built.pixels(frames)
        whole = built.encoder.encode(pixels)
        for size in (1, 3, 7, frames):
            groups = in_groups(pixels, size)
            streamed = encode_stream(built.encoder, groups, tuple(pixels.shape[1:4]))
            assert torch.equal(streamed, whole)
        with pytest.raises(EncoderError, match=f"of {frames} frames was streamed as {frames - 1}"):
            list(built.encoder.stream(in_groups(pixels[:, 1:], 2), frames))
        assert torch.equal(built.encoder.encode(pixels), whole)


def test_moments_are_refused_by_decode(built: Built) -> None:
    encoded = built.encoder.encode(built.pixels(built.case.frames[0]))
    if not built.has_posterior(encoded) or built.case.decodes is not True:
        pytest.skip("gives no moments, or does not decode")
    with pytest.raises(EncoderError, match="These are moments: decode their mean"):
        built.encoder.decode(encoded)


def test_normaliser_is_inverted_by_unnormalise(built: Built) -> None:
    if built.spec.normaliser.kind == "none":
        pytest.skip("its trainers take the latents as they are")
    latents = built.latents(built.encoder.encode(built.pixels(built.case.frames[1], batch=2)))
    normalised = posterior.normalise(latents, built.spec.normaliser)
    assert not torch.equal(normalised, latents)
    restored = posterior.unnormalise(normalised, built.spec.normaliser)
    torch.testing.assert_close(restored, latents, rtol=1e-5, atol=1e-5)


@pytest.fixture
def failing_module() -> Iterator[list[int]]:
    """Make the 25th call of any torch module raise, for as long as the list is not empty."""
    countdown = [25]

    def fail(*_: object) -> None:
        if countdown:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise MemoryError("no room, in the middle of the network")

    hook = register_module_forward_pre_hook(fail)
    yield countdown
    hook.remove()


def test_an_exception_inside_leaves_no_trace(built: Built, failing_module: list[int]) -> None:
    if not built.case.is_network:
        pytest.skip("has no torch modules")
    pixels = built.pixels(built.case.frames[-1])
    with pytest.raises(MemoryError, match="no room"):
        built.encoder.encode(255 - pixels)  # other ones: their traces would not fit these
    failing_module.clear()
    again = built.encoder.encode(pixels)
    fresh = built.module.build(built.config, spec=built.spec, device=CPU)
    assert torch.equal(again, fresh.encode(pixels))
