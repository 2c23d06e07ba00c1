"""Encoders over tiles: equal to diffusers' own, whole clips untouched, refusals, and a GPU that is full."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache import encoders
from latentcache.core import posterior
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.tiled import TiledEncoder, tiling_error
from latentcache.errors import ConfigError, EncoderError, GeometryError
from tests.tools.diffusers_tools import (
    CPU,
    as_fed_by_diffusers,
    identity,
    pixels,
    reference,
    section,
)
from tests.tools.discrete_models import save_var, save_videogpt
from tests.tools.tiny_models import save

pytestmark = pytest.mark.slow

Size = tuple[int, int]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(raw: dict[str, Any]) -> Any:
    module, config = encoders.resolve(raw)
    spec = module.describe(config, dtype="float32")
    return module.build(config, spec=spec, device=CPU)


def tiles(tile: Size, overlap: Size, **others: Any) -> dict[str, Any]:
    return {"tile": list(tile), "overlap": list(overlap), **others}


def dct(**tiling: Any) -> Any:
    tiling = {"tile": [32, 32], "overlap": [8, 16], **tiling}
    return build({"kind": "dct", "store": "moments", "tiling": tiling})


def enable_tiling(vae: Any, tile: Size, overlap: Size, stride: int) -> None:
    """Set the tiles of a class of diffusers, which has them by one of three sets of names."""
    vae.use_tiling = True
    for axis, name in enumerate(("height", "width")):
        if hasattr(vae, f"tile_sample_stride_{name}"):
            setattr(vae, f"tile_sample_stride_{name}", tile[axis] - overlap[axis])
        elif hasattr(vae, f"tile_overlap_factor_{name}"):
            setattr(vae, f"tile_overlap_factor_{name}", overlap[axis] / tile[axis])
        else:
            assert overlap[0] / tile[0] == overlap[1] / tile[1] == vae.tile_overlap_factor
        for what, size in (("sample", tile[axis]), ("latent", tile[axis] // stride)):
            if hasattr(vae, f"tile_{what}_min_{name}"):
                setattr(vae, f"tile_{what}_min_{name}", size)
    if hasattr(vae, "tile_sample_min_size"):
        assert tile[0] == tile[1]
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile[0], tile[0] // stride


@torch.no_grad()
def by_diffusers(name: str, vae: Any, clip: torch.Tensor) -> torch.Tensor:
    x = as_fed_by_diffusers(clip[0])
    if name in ("kl", "flux", "dc"):
        frames = [vae.encode(frame.contiguous()) for frame in x.unbind(2)]
        if name == "dc":
            return torch.stack([frame.latent for frame in frames], 2)
        dists = [frame.latent_dist for frame in frames]
        return torch.stack([torch.cat([d.mean, d.logvar], 1) for d in dists], 2)
    dist = vae.encode(x).latent_dist
    return torch.cat([dist.mean, dist.logvar], 1)


#: Frames, the clip's size, the tile's, the overlap. Tiles fit evenly, unevenly, and by more than half.
CASES = {
    "wan": (5, (72, 104), (48, 48), (16, 24)),
    "wan even": (1, (80, 112), (48, 48), (16, 16)),
    "wan much": (1, (88, 96), (48, 48), (32, 40)),
    "wan one row": (1, (40, 104), (48, 48), (16, 24)),
    "wan22": (1, (176, 208), (96, 96), (32, 32)),
    "qwenimage": (5, (72, 104), (48, 48), (16, 24)),
    "cogvideox": (9, (72, 120), (48, 80), (8, 16)),
    "hunyuan": (5, (72, 104), (48, 48), (16, 24)),
    "hunyuan15": (5, (112, 160), (64, 64), (16, 16)),
    "ltx": (9, (160, 224), (96, 128), (32, 64)),
    "ltx2": (9, (160, 224), (96, 128), (32, 64)),
    "mochi": (7, (72, 104), (48, 48), (16, 24)),
    "kl": (1, (112, 136), (64, 64), (16, 16)),
    "flux": (2, (112, 136), (64, 64), (16, 16)),
    "dc": (1, (160, 224), (96, 96), (32, 64)),
}
#: Each takes seconds; those of the long runs.
SLOWEST = {"mochi", "hunyuan15", "wan22", "ltx2"}


def case_of(key: str, folder: Path) -> tuple[str, Any, Any, torch.Tensor]:
    """Return a model's name, itself as diffusers tiles it, the same by this package, and a clip."""
    frames, size, tile, overlap = CASES[key]
    name = key.split()[0]
    save(name, folder)
    tiled = build({**section(folder, name), "tiling": tiles(tile, overlap, edge="cut")})
    vae = reference(folder)
    stride = tiled.spec.stride[1]
    if name == "wan22":  # its class tiles patches of 2x2 pixels
        tile, overlap = (tile[0] // 2, tile[1] // 2), (overlap[0] // 2, overlap[1] // 2)
    enable_tiling(vae, tile, overlap, stride)
    if name == "hunyuan":
        vae.use_framewise_encoding = False
    return name, vae, tiled, pixels(frames, size=size)


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[pytest.mark.long] if key in SLOWEST else []) for key in CASES]
)
def test_cut_tiles_equal_diffusers_own(key: str, tmp_path: Path) -> None:
    name, vae, tiled, clip = case_of(key, tmp_path)
    expected = by_diffusers(name, vae, clip)
    vae.use_tiling = False
    assert (by_diffusers(name, vae, clip) - expected).abs().max() > 1e-3
    torch.testing.assert_close(tiled.encode(clip), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "size"), [(17, (40, 56)), (25, (40, 56)), (33, (40, 56)), (33, (32, 48))]
)
def test_tiles_in_time_equal_those_that_diffusers_makes_of_hunyuan_by_default(
    frames: int, size: Size, tmp_path: Path
) -> None:
    save("hunyuan", tmp_path)
    vae = reference(tmp_path)
    assert (vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames) == (16, 12)
    enable_tiling(vae, (48, 48), (16, 24), 8)
    tiling = tiles((48, 48), (16, 24), frames=17, frame_overlap=5, edge="cut")
    tiled = build({**section(tmp_path), "tiling": tiling})
    clip = pixels(frames, size=size)
    expected = by_diffusers("hunyuan", vae, clip)
    torch.testing.assert_close(tiled.encode(clip), expected, rtol=1e-5, atol=1e-5)


def test_shifted_tiles_are_the_models_own_where_no_other_tile_reaches(tmp_path: Path) -> None:
    save("wan", tmp_path)
    raw = section(tmp_path)
    clip = pixels(5, size=(72, 104))
    tiled = build({**raw, "tiling": tiles((48, 48), (16, 16))}).encode(clip)
    untiled = build(raw)
    first = untiled.encode(clip[:, :, :48, :48].contiguous())
    last = untiled.encode(clip[:, :, 24:, 56:].contiguous())
    assert torch.equal(tiled[..., :3, :4], first[..., :3, :4])
    assert torch.equal(tiled[..., 6:, 10:], last[..., 3:, 3:])  # all of its last latents


@pytest.mark.parametrize("name", ["wan", "hunyuan", "kl"])
def test_a_clip_no_larger_than_a_tile_is_encoded_whole_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    save(name, tmp_path)
    raw = section(tmp_path, name)
    times = {"frames": 5, "frame_overlap": 1} if name == "hunyuan" else {}
    for edge in ("shift", "cut"):
        tiled = build({**raw, "tiling": tiles((32, 48), (16, 16), edge=edge, **times)})
        for frames, size in ((1, (32, 48)), (5, (32, 40)), (5, (16, 48))):
            clip = pixels(frames, size=size)
            assert torch.equal(tiled.encode(clip), build(raw).encode(clip))


@pytest.mark.parametrize("edge", ["shift", "cut"])
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_blockwise_encoder_is_the_same_over_tiles(edge: str, batch: int) -> None:
    clip = pixels(5, batch=2, size=(72, 104))
    untiled = build({"kind": "dct", "store": "moments"})
    encoded = dct(edge=edge, batch=batch).encode(clip)
    torch.testing.assert_close(encoded, untiled.encode(clip), rtol=0, atol=1e-5)


def test_tiles_are_encoded_in_batches_of_one_clip_and_shape() -> None:
    tiled = dct(batch=4, edge="cut")
    shapes = []
    inner = tiled.untiled.encode
    tiled.untiled.encode = lambda batch: shapes.append(tuple(batch.shape[:4])) or inner(batch)
    tiled.encode(pixels(5, batch=2, size=(40, 48)))
    of_one_clip = [(2, 5, 32, 32), (1, 5, 32, 16), (2, 5, 16, 32), (1, 5, 16, 16)]
    assert sorted(shapes) == sorted(2 * of_one_clip)


def test_decoding_is_untiled() -> None:
    tiled, clip = dct(), pixels(5, size=(72, 104))
    means = posterior.split(tiled.encode(clip))[0]
    assert torch.equal(tiled.decode(means), tiled.untiled.decode(means))


def test_tiles_are_part_of_the_recipe_and_what_is_measured_is_not(tmp_path: Path) -> None:
    save("hunyuan", tmp_path)
    plain = {"tiling": tiles((48, 48), (16, 16))}
    recipe = identity(tmp_path, **plain)
    assert "tiling" not in identity(tmp_path)
    assert {**identity(tmp_path), "tiling": recipe["tiling"]} == recipe
    assert json.loads(json.dumps(recipe)) == recipe
    for change in (
        {"tile": [48, 56]},
        {"overlap": [16, 24]},
        {"batch": 2},
        {"edge": "cut"},
        {"frames": 17, "frame_overlap": 5},
    ):
        assert identity(tmp_path, tiling={**plain["tiling"], **change}) != recipe
    assert identity(tmp_path, tiling={**plain["tiling"], "measure": 0}) == recipe
    assert identity(tmp_path, tiling=None) == identity(tmp_path)


def test_a_tiled_spec_says_approximate_and_is_the_encoders_otherwise(tmp_path: Path) -> None:
    save("wan", tmp_path)
    untiled = build(section(tmp_path)).spec
    tiled = build({**section(tmp_path), "tiling": tiles((32, 32), (8, 8))}).spec
    assert (untiled.exactness, tiled.exactness) == ("prefix_exact", "approximate")
    assert {**tiled.to_json(), "exactness": "prefix_exact"} == untiled.to_json()


def test_tiles_in_time_narrow_the_legal_frames(tmp_path: Path) -> None:
    save("cogvideox", tmp_path)
    tiling = tiles((32, 32), (8, 8), frames=9, frame_overlap=1)
    tiled = build({**section(tmp_path), "tiling": tiling})
    assert [n for n in range(26) if tiled.spec.frame_rule.is_legal(n)] == [1, 9, 17, 25]
    assert tiled.encode(pixels(25, size=(16, 16))).shape[2:] == (7, 2, 2)
    with pytest.raises(GeometryError, match=r"takes 8k\+1 frames per clip, not 16.*to 9 or 17"):
        tiled.encode(pixels(16, size=(16, 16)))


WRONG = {
    "tile: .*reduces height by 8, and 30 is no multiple.* Use 24 or 32": tiles((30, 32), (8, 8)),
    "tile: .*reduces width by 8, and 4 is no multiple.* Use 8": tiles((32, 4), (8, 0)),
    "overlap: .*reduces width by 8, and 12 is no multiple.* Use 8 or 16": tiles((32, 32), (8, 12)),
    "overlap: a height of 32 pixels is not less than the tile's 32. Use 8": tiles(
        (32, 32), (32, 8)
    ),
    "frame_overlap: goes with encoder.tiling.frames": tiles((32, 32), (8, 8), frame_overlap=5),
    "frame_overlap: required with": tiles((32, 32), (8, 8), frames=17),
    r"frames: .*takes 4k\+1 frames, not 16. Use 13 or 17": tiles(
        (32, 32), (8, 8), frames=16, frame_overlap=5
    ),
    r"frame_overlap: .*17 frames.*share 4k\+1, at most 13 frames, not 4.* Use 1 or 5": tiles(
        (32, 32), (8, 8), frames=17, frame_overlap=4
    ),
    r"frame_overlap: .*share 4k\+1, at most 13 frames, not 17.* Use 13\.": tiles(
        (32, 32), (8, 8), frames=17, frame_overlap=17
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_tiles_that_do_not_fit_are_refused_with_what_does(message: str, tmp_path: Path) -> None:
    save("hunyuan", tmp_path)
    with pytest.raises(ConfigError, match=f"^encoder.tiling.{message}"):
        build({**section(tmp_path), "tiling": WRONG[message]})


def test_the_section_is_checked_as_any_other() -> None:
    with pytest.raises(
        ConfigError, match=r"tile: unknown key|tiles: unknown key. Did you mean 'tile'"
    ):
        dct(tiles=[8, 8])
    with pytest.raises(ConfigError, match=r"(?s)encoder.tiling:.*overlap: required"):
        build({"kind": "dct", "tiling": {"tile": [8, 8]}})
    with pytest.raises(ConfigError, match=r"encoder\.tiling"):
        build({"kind": "dct", "tiling": 256})
    with pytest.raises(ConfigError, match="batch: should be greater than 0"):
        dct(batch=0)


def test_cut_tiles_in_time_must_leave_legal_ones(tmp_path: Path) -> None:
    save("cogvideox", tmp_path)
    tiling = tiles((32, 32), (8, 8), frames=17, frame_overlap=5, edge="cut")
    with pytest.raises(ConfigError, match=r"edge: cut could leave.*Use shift"):
        build({**section(tmp_path), "tiling": tiling})


def test_tiles_in_time_are_refused_for_causal_encoders() -> None:
    with pytest.raises(ConfigError, match=r"DCT is causal \(prefix_exact\).*Remove frames"):
        dct(frames=5, frame_overlap=1)


def test_encoders_that_cannot_be_tiled_say_why(tmp_path: Path) -> None:
    section_of_tiles = tiles((128, 128), (32, 32))
    for name, raw, why in (
        ("ids", save_videogpt, "gives ids, and there is no code between two codes to blend to"),
        ("scales", save_var, "gives ids"),
        (
            "own",
            lambda f: section(save("allegro", f)),
            "has tiles of its own, which its trainers see",
        ),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match=f"encoder.tiling: .*{why}.*Remove encoder.tiling"):
            build({**raw(tmp_path / name), "tiling": section_of_tiles})


class Small:
    """A GPU with little memory: an encoder that takes `limit` pixels at once, batch and frames included."""

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self.spec = encoder.spec
        self._encoder = encoder
        self._limit = limit
        self.calls: list[tuple[int, ...]] = []

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(pixels_BTHWC.shape[:4]))
        if pixels_BTHWC.numel() // 3 > self._limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._encoder.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._encoder.decode(latents_BCthw)


def small(limit: int, **tiling: Any) -> tuple[TiledEncoder, Small]:
    tiled = dct(**tiling)
    tiled.untiled = Small(tiled.untiled, limit)
    return tiled, tiled.untiled


def test_a_batch_without_room_is_halved_from_then_on_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    clip = pixels(1, size=(104, 104))
    tiled, gpu = small(2 * 32 * 32, batch=8)
    with caplog.at_level(logging.WARNING):
        encoded = tiled.encode(clip)
    sizes = [call[0] for call in gpu.calls]
    assert sizes[:3] == [8, 4, 2]
    assert len(freed) == 2
    assert set(sizes[2:-1]) == {2}
    assert "no GPU memory for 8 tiles at once; from now on 4" in caplog.text
    assert torch.equal(encoded, dct().encode(clip))
    gpu.calls.clear()
    tiled.encode(clip)
    assert max(call[0] for call in gpu.calls) == 2


def test_a_tile_without_room_fails_with_the_size_that_fits() -> None:
    tiled, gpu = small(16 * 16)
    with pytest.raises(
        EncoderError, match=r"DCT has no GPU memory for 1 frames of 32x32"
    ) as caught:
        tiled.encode(pixels(1, size=(64, 64)))
    assert "encoder.tiling.tile: [16, 16] fits" in str(caught.value)
    assert "part of the recipe" in str(caught.value)
    assert gpu.calls == [(1, 1, 32, 32), (1, 1, 16, 16)]
    assert tiled.tiling.tile == (32, 32)
    with pytest.raises(EncoderError, match="16, 16"):
        tiled.encode(pixels(1, size=(64, 64)))


def test_an_untiled_clip_without_room_fails_with_the_tile_that_fits() -> None:
    gpu = Small(build({"kind": "dct"}), 5 * 40 * 40)
    with pytest.raises(EncoderError, match=r"5 frames of 96x136.*tile: \[24, 32\] fits"):
        out_of_memory.encode(gpu, pixels(5, size=(96, 136)))
    assert gpu.calls == [(1, 5, 96, 136), (1, 5, 48, 64), (1, 5, 24, 32)]
    assert torch.equal(
        out_of_memory.encode(gpu, pixels(5, size=(40, 40))), gpu.encode(pixels(5, size=(40, 40)))
    )


def test_nothing_fits_or_nothing_can_be_tiled(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"nor for any part of them. Make clips shorter"):
        out_of_memory.encode(Small(build({"kind": "dct"}), 0), pixels(5, size=(96, 136)))
    ids = Small(build(save_videogpt(tmp_path)), 0)
    with pytest.raises(EncoderError, match=r"cannot be tiled: .*gives ids.*Make clips smaller"):
        out_of_memory.encode(ids, pixels(4, size=(16, 16)))
    assert len(ids.calls) == 1


def test_other_errors_pass_through() -> None:
    tiled = dct(batch=4)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    tiled.untiled.encode = fail
    with pytest.raises(RuntimeError, match="device-side assert"):
        tiled.encode(pixels(1, size=(64, 64)))


def error_of(encoder: Any, clip: torch.Tensor, *, shard: int = 0, row: int = 0) -> float | None:
    return tiling_error(encoder, clip, encoder.encode(clip), shard=shard, row=row)


def test_tiling_error_is_the_difference_over_the_latents_spread(tmp_path: Path) -> None:
    save("wan", tmp_path)
    tiled = build({**section(tmp_path), "tiling": tiles((32, 32), (16, 16))})
    clip = pixels(5, size=(48, 64))
    got, expected = (posterior.split(e.encode(clip))[0] for e in (tiled, tiled.untiled))
    spread = expected - expected.mean(dim=(2, 3, 4), keepdim=True)
    error = error_of(tiled, clip)
    assert error == pytest.approx(float((got - expected).norm() / spread.norm()), rel=1e-5)
    assert 1e-3 < error < 1


def test_tiling_error_is_of_the_first_clips_of_a_bucket_alone() -> None:
    tiled, clip = dct(measure=2), pixels(1, size=(64, 64))
    sampled = [error_of(tiled, clip, row=row) is not None for row in range(4)]
    assert sampled == [True, True, False, False]
    assert error_of(tiled, clip, shard=1) is None
    assert error_of(dct(measure=0), clip) is None
    assert error_of(tiled.untiled, clip) is None


def test_tiling_error_is_null_where_there_is_none_to_measure() -> None:
    tiled, gpu = small(32 * 32)
    assert error_of(tiled, pixels(1, size=(64, 64))) is None  # no room untiled
    assert gpu.calls[-1] == (1, 1, 64, 64)
    black = torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)
    assert error_of(dct(), black) is None


def test_tiling_error_of_a_clip_within_one_tile_is_nothing_and_takes_no_time() -> None:
    tiled, gpu = small(1 << 30)
    assert error_of(tiled, pixels(1, size=(32, 32))) == 0
    assert len(gpu.calls) == 1
