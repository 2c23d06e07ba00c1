"""Fields of pixels and of the cache's own encoder, against the decoder and against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latentcache
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import add, cache_of, write_fields
from tests.tools.tiny_models import save_wan
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]
FRAMES, HEIGHT, WIDTH = 5, 32, 48
FIELDS: dict[str, dict[str, Any]] = {
    "frame0": {"kind": "raw", "of": "first"},
    "first": {"kind": "visual", "of": "first"},
    "i2v": {"kind": "visual", "of": "first_then_zeros", "mask": "wan"},
    "flf2v": {"kind": "visual", "of": "first_last_then_zeros", "mask": "wan"},
    "view": {"kind": "view"},
}
#: Fields of image towers: family, what they are of, and the frames that the pipeline gets.
TOWERS: dict[str, tuple[str, str, list[int]]] = {
    "clip": ("wan_clip", "last", [-1]),
    "clips": ("wan_clip", "first_last", [0, -1]),
    "siglip": ("siglip", "first", [0]),
}


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("visual"), FRAMES)


def make_cache(folder: Path, frames: int) -> Path:
    """A cache of a small random Wan VAE in float32, whose fields were added to it."""
    (folder / "corpus").mkdir()
    for n in range(2):
        write_video(folder / f"corpus/v{n}.mp4", moving_pattern(frames, HEIGHT, WIDTH, seed=n))
    save_wan(folder / "wan")
    encoder = {"kind": "diffusers_video", "model": str(folder / "wan"), "dtype": "float32"}
    config = make_config(
        folder,
        folder / "corpus",
        str(folder / "cache"),
        clips={"frames": frames, "select": "first", "size": [HEIGHT, WIDTH]},
        encoder={**encoder, "store": "moments"},
        cache={"dtype": "float32", "shard_clips": 1},
    )
    assert run_inline("precompute", config)[0] == 0
    path = write_fields(folder, **FIELDS, **tower_fields(folder))
    status, printed = run_inline(
        "add_field", folder / "cache", path, "run.runner=local", "run.decode_processes=1"
    )
    assert status == 0, printed
    return folder


def tower_fields(folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations of TOWERS, with tiny random models."""
    from tests.tools.texts.towers import TINY

    fields = {}
    for name, (family, of, _) in TOWERS.items():
        encoder = {"family": family, "model": str(TINY[family](folder / name)), "dtype": "float32"}
        fields[name] = {"kind": "visual", "of": of, "encoder": encoder}
    return fields


@pytest.fixture(scope="module", name="batch")
def batch_fixture(folder: Path) -> dict[str, Any]:
    return batch_of(folder)


def batch_of(folder: Path) -> dict[str, Any]:
    loader = latentcache.LatentLoader(
        str(folder / "cache"),
        batch_size=2,
        shuffle=False,
        posterior="mode",
        fields=[*FIELDS, *TOWERS],
    )
    return next(iter(loader))


def pixels_of(folder: Path, batch: dict[str, Any]) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] of the clips of a batch."""
    names = [key.partition("#")[0] for key in batch["key"]]
    return torch.stack([torch.from_numpy(read_with_pyav(folder / "corpus" / n)) for n in names])


def pipeline_of(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

    parts = ("tokenizer", "text_encoder", "scheduler", "image_processor", "image_encoder")
    vae = AutoencoderKLWan.from_pretrained(folder / "wan").eval()
    return WanImageToVideoPipeline(**dict.fromkeys((*parts, "transformer")), vae=vae)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field", ["i2v", "flf2v"])
def test_conditions_of_image_to_video_are_the_pipelines_own(
    folder: Path, batch: dict[str, Any], field: str
) -> None:
    assert_conditions(folder, batch, field)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frames", [9, 17])
def test_conditions_of_other_lengths_are_the_pipelines_own_too(tmp_path: Path, frames: int) -> None:
    folder = make_cache(tmp_path, frames)
    for field in ("i2v", "flf2v"):
        assert_conditions(folder, batch_of(folder), field)


def assert_conditions(folder: Path, batch: dict[str, Any], field: str) -> None:
    pipeline, pixels = pipeline_of(folder), pixels_of(folder, batch)
    for n in range(2):
        first, last = (
            pipeline.video_processor.preprocess(frame.numpy()[None].astype(np.float32) / 255)
            for frame in (pixels[n, 0], pixels[n, -1])
        )
        with torch.inference_mode():
            _, expected = pipeline.prepare_latents(
                first,
                batch_size=1,
                height=HEIGHT,
                width=WIDTH,
                num_frames=len(pixels[n]),
                dtype=torch.float32,
                device=torch.device("cpu"),
                last_image=last if field == "flf2v" else None,
            )
        assert torch.equal(batch[field][n], expected[0])


def test_raw_frames_are_the_clips_own(folder: Path, batch: dict[str, Any]) -> None:
    pixels = pixels_of(folder, batch)
    assert torch.equal(batch["frame0"], pixels[:, :1])


def test_the_latent_of_the_first_frame_is_the_first_latent(batch: dict[str, Any]) -> None:
    assert torch.equal(batch["first"], batch["view"])
    assert torch.equal(batch["view"], batch["latents"][:, :, :1])


@pytest.mark.parametrize("field", ["frame0", "first", "i2v", "view", "clip"])
def test_a_sample_has_of_a_field_what_a_batch_has(
    folder: Path, batch: dict[str, Any], field: str
) -> None:
    cache = latentcache.open_cache(str(folder / "cache"))
    for n in range(2):
        assert torch.equal(cache.dataset(posterior="mode")[n][field], batch[field][n])
        assert torch.equal(cache[batch["key"][n]][field], batch[field][n])
    stored = cache.stored_samples([0])[0]
    assert torch.equal(stored["first"], stored["view"])
    assert not torch.equal(stored["first"], batch["first"][0])


@pytest.mark.parametrize("field", TOWERS)
def test_states_of_images_are_the_pipelines_own(
    folder: Path, batch: dict[str, Any], field: str
) -> None:
    from tests.tools.texts.towers import REFERENCES

    family, _, frames = TOWERS[field]
    for states, pixels in zip(batch[field], pixels_of(folder, batch), strict=True):
        images = [Image.fromarray(pixels[n].numpy()) for n in frames]
        with torch.inference_mode():
            expected = REFERENCES[family](folder / field, images, torch.float32)
        assert torch.equal(states, expected.flatten(0, 1))


def test_another_tower_than_the_planned_one_is_not_mixed_in(folder: Path) -> None:
    weights = next((folder / "siglip/image_encoder").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\0")
    status, printed = run_inline("resume", folder / "cache", "--field", "siglip")
    weights.write_bytes(whole)
    assert (status, "weights_sha256" in printed) == (2, True), printed


def test_a_view_stores_nothing(folder: Path) -> None:
    files = [path.name for path in (folder / "cache/fields/view").rglob("*") if path.is_file()]
    assert sorted(files) == ["field.json", "index.parquet"]
    assert run_inline("verify", folder / "cache")[0] == 0
    opened = latentcache.open_cache(str(folder / "cache"))
    assert torch.equal(opened.stored_samples([0])[0]["view"], opened.stored(0)[:16, :1])
    assert torch.equal(opened[0]["first"], opened[0]["view"])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"of": "first_then_zeros", "encoder": "clip"}, "encoder"),
        ({"of": "first", "mask": "wan"}, "this field has no zeros"),
        ({"of": "first_last"}, "first_last is for image towers"),
        ({"of": "first", "encoder": {"family": "clip"}}, "unknown tower 'clip'"),
        ({"of": "first", "encoder": {"family": "siglip", "frames": "first"}}, "`of` says which"),
        ({"of": "first_then_zeros", "encoder": {"family": "siglip"}}, "frames by themselves"),
        ({"of": "first_last", "encoder": {"family": "siglip", "model": "/x"}}, "should be 'first'"),
        ({"of": "first", "encoder": {"family": "siglip", "model": "/x"}}, "'/x/image_encoder'"),
    ],
)
def test_fields_that_no_encoder_can_give_are_refused(
    tmp_path: Path, field: dict[str, Any], message: str
) -> None:
    cache = cache_of(tmp_path, ["a", "b"], filled=False)
    printed = add(cache, status=2, bad={"kind": "visual", **field})
    assert message in printed
    assert "Traceback" not in printed


def test_fields_with_an_entry_per_latent_frame_are_cut_like_a_window(
    folder: Path, batch: dict[str, Any]
) -> None:
    def part(view: Any, *fields: str) -> dict[str, Any]:
        options: dict[str, Any] = {"posterior": "mode", "fields": fields, "view": view}
        return next(iter(latentcache.LatentLoader(str(folder / "cache"), shuffle=False, **options)))

    second = part(latentcache.Window(1, start="all", middle=True), "i2v", "first", "frame0")
    assert second["key"] == [key for key in batch["key"] for _ in range(2)]
    for n, (frame,) in enumerate(second["frame_indices"].tolist()):
        assert torch.equal(second["i2v"][n, :, 0], batch["i2v"][n // 2, :, frame])
        assert torch.equal(second["latents"][n, :, 0], batch["latents"][n // 2, :, frame])
        for name in ("first", "frame0"):  # of the whole clip
            assert torch.equal(second[name][n], batch[name][n // 2])
    with pytest.raises(latentcache.ConfigError, match="view is a part of each clip's latents"):
        part(latentcache.Window(2), "view")
