"""Fields that a program writes: trajectories, read step by step, in either direction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from jobs.fields import resume_fields
from latentcache.core.fields import FieldArray
from latentcache.errors import ClipError, ConfigError, RecipeMismatchError
from latentcache.exchange.write_field import Written, write_field
from latentcache.format.shards import ranges
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.window import Window
from latentcache.storage.folder import Storage
from tests.tools.fields import cache_of
from tests.tools.synthetic import Synthetic, make_spec, write_cache

BUCKETS = {"9x16x16": 5, "1x32x48": 3}
FAILED = [("9x16x16", 1)]
NUM_STEPS, CHANNELS = 6, 4
ARRAYS = {
    "ddim": FieldArray(shape=(NUM_STEPS, CHANNELS), dtype="float32", rule="trajectory"),
    "timesteps": FieldArray(shape=(NUM_STEPS,), dtype="float32"),
    "scores": FieldArray(shape=(NUM_STEPS - 1, CHANNELS), dtype="bfloat16", rule="trajectory"),
    "texts": FieldArray(shape=(NUM_STEPS - 1, 3, 8), dtype="float16", rule="by_step"),
}


def write(url: str | Path, **options: Any) -> Synthetic:
    return write_cache(str(url), buckets=BUCKETS, failed=FAILED, shard_clips=2, **options)


@pytest.fixture
def cache() -> Synthetic:
    return write(f"memory://{uuid.uuid4().hex}", by_frame=True)


def arrays_of(cache: Synthetic, key: str) -> dict[str, torch.Tensor]:
    """Return what a program gives of a clip: noise that is the clip's own."""
    rng = torch.Generator().manual_seed(sorted(cache.arrays).index(key))
    grid = cache.arrays[key].shape[1:]
    return {
        "ddim": torch.randn((NUM_STEPS, CHANNELS, *grid), generator=rng),
        "timesteps": torch.linspace(0, 999, NUM_STEPS),
        "scores": torch.randn((NUM_STEPS - 1, CHANNELS, *grid), generator=rng).bfloat16(),
        "texts": torch.randn((NUM_STEPS - 1, 3, 8), generator=rng).half(),
    }


def make_field(
    cache: Synthetic, make: Callable[[str], Mapping[str, Any] | None] | None = None, **options: Any
) -> Written:
    made = make or (lambda key: arrays_of(cache, key))
    options = {"arrays": ARRAYS, "recipe": {"steps": NUM_STEPS}, **options}
    return write_field(cache.url, "ddim", made, **options)


@pytest.mark.slow
def test_a_field_has_what_the_program_gave(cache: Synthetic) -> None:
    found = make_field(cache)
    assert (found.num_ok, found.reasons) == (len(cache.arrays), {"missing_input": len(FAILED)})
    opened = latentcache.open_cache(cache.url)
    for key in cache.arrays:
        expected = arrays_of(cache, key)
        for name, values in expected.items():
            array = "ddim" if name == "ddim" else f"ddim.{name}"
            assert torch.equal(opened[key][array], values)
    for batch in LatentLoader(opened, batch_size=2, fields=["ddim"]):
        for key, latents, scores in zip(
            batch["key"], batch["ddim"], batch["ddim.scores"], strict=True
        ):
            assert torch.equal(latents, arrays_of(cache, key)["ddim"])
            assert torch.equal(scores, arrays_of(cache, key)["scores"])


@pytest.mark.slow
def test_views_cut_trajectories_along_the_latents_time(cache: Synthetic) -> None:
    make_field(cache)
    where = "bucket = '9x16x16'"
    view = Window(4, run_on=False)
    for batch in LatentLoader(cache.url, batch_size=2, fields=["ddim"], view=view, where=where):
        assert len(batch["key"])
        for key, latents, frames in zip(
            batch["key"], batch["ddim"], batch["frame_indices"], strict=True
        ):
            assert torch.equal(latents, arrays_of(cache, key)["ddim"][:, :, frames])
    with pytest.raises(ConfigError, match="run_on=False"):
        LatentLoader(cache.url, fields=["ddim"], view=Window(4), where=where)


@pytest.mark.slow
def test_a_step_costs_its_chunk_in_either_direction(
    cache: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_field(cache)
    opened, requests = latentcache.open_cache(cache.url), list[tuple[str, int]]()
    key = "9x16x16-0003"
    steps, scores = opened.steps("ddim", key), opened.steps("ddim.scores", key)
    expected = arrays_of(cache, key)
    assert torch.equal(steps[0], expected["ddim"][0])  # reads the shard's index, once
    original = Storage.read_ranges

    def counting(self: Storage, path: str, wanted: Any) -> list[bytes]:
        found = original(self, path, wanted)
        requests.extend((path, length) for _, length in wanted)
        return found

    monkeypatch.setattr(Storage, "read_ranges", counting)
    monkeypatch.setattr(ranges, "MAX_GAP_BYTES", 0)
    step_bytes = expected["ddim"][0].numel() * 4
    for numbers in (range(NUM_STEPS), reversed(range(NUM_STEPS))):
        for n in numbers:
            requests.clear()
            assert torch.equal(steps[n], expected["ddim"][n])
            ((path, length),) = requests  # one request
            assert path.startswith("fields/ddim/")
            assert length < 1.3 * step_bytes + 64
    requests.clear()
    backwards = list(reversed(steps))
    assert torch.equal(torch.stack(backwards), expected["ddim"].flip(0))
    assert sum(length for _, length in requests) < NUM_STEPS * (1.3 * step_bytes + 64)
    assert torch.equal(steps[1:4], expected["ddim"][1:4])
    assert torch.equal(steps[::-2], expected["ddim"].flip(0)[::2])
    assert torch.equal(scores[-1], expected["scores"][-1])
    assert steps[3:3].shape == (0, *steps.shape[1:])
    with pytest.raises(IndexError):
        steps[NUM_STEPS]


@pytest.mark.slow
def test_a_program_that_was_stopped_goes_on(cache: Synthetic) -> None:
    asked: list[str] = []

    def make(key: str) -> Mapping[str, Any]:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(key)
        return arrays_of(cache, key)

    with pytest.raises(KeyboardInterrupt):
        make_field(cache, make)
    again: list[str] = []
    found = make_field(cache, lambda key: again.append(key) or arrays_of(cache, key))  # type: ignore[func-returns-value]
    assert found.num_before > 0
    assert set(asked) | set(again) == set(cache.arrays)
    assert len(asked) + len(again) - len(cache.arrays) < 2  # of the shard that was not committed
    assert make_field(cache, lambda key: pytest.fail(key)) == Written(
        num_ok=0, num_failed=0, num_before=5, reasons={}
    )
    opened = latentcache.open_cache(cache.url)
    for key in cache.arrays:
        assert torch.equal(opened[key]["ddim"], arrays_of(cache, key)["ddim"])


@pytest.mark.slow
def test_clips_that_the_program_has_nothing_of_fail(cache: Synthetic) -> None:
    def make(key: str) -> Mapping[str, Any] | None:
        arrays = arrays_of(cache, key)
        if key.endswith("0"):
            return None
        if key.endswith("2"):
            raise ClipError("other_shape", "it is no square")
        if key.endswith("3"):
            arrays["scores"][0, 0, 0] = float("nan")
        return arrays

    found = make_field(cache, make)
    expected = {"missing_input": 2 + len(FAILED), "other_shape": 2, "non_finite": 1}
    assert found.reasons == expected
    loader = LatentLoader(cache.url, fields=["ddim"])
    assert loader.left_out == [{"ddim": len(cache.arrays) - found.num_ok}]
    opened = latentcache.open_cache(cache.url)
    with pytest.raises(KeyError):
        opened.steps("ddim", "9x16x16-0000")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arrays": {"other": ARRAYS["ddim"]}}, "own under 'ddim'"),
        ({"arrays": {"ddim": (3,)}}, "Give a FieldArray"),
        ({"make": lambda _: {"ddim": 3}}, "was given, not ddim, timesteps"),
        ({"make": lambda _: 3}, "3 was given"),
        ({"make": 3}, "make is 3"),
        ({"recipe": {"when": Path()}}, "more than JSON values"),
        ({"make": lambda _: dict.fromkeys(ARRAYS, "x")}, "is no array"),
        ({"make": lambda _: dict.fromkeys(ARRAYS, np.zeros(3))}, r"is \[3\], and the field has"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], message: str, cache: Synthetic
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_field(cache, **options)


@pytest.mark.parametrize("suffix", ["tokens", "mask"])
def test_an_array_is_not_named_as_what_batches_say_of_another(
    cache: Synthetic, suffix: str
) -> None:
    padded = FieldArray(shape=(4, 3), dtype="float32", padding="mask")
    arrays = {**ARRAYS, "a": padded, f"a_{suffix}": padded}
    with pytest.raises(ConfigError, match=f"cannot be named 'a_{suffix}': .* say of 'a', which is"):
        make_field(cache, arrays=arrays)


@pytest.mark.slow
def test_another_recipe_is_another_field(cache: Synthetic) -> None:
    make_field(cache)
    with pytest.raises(RecipeMismatchError, match="steps"):
        make_field(cache, recipe={"steps": 50})
    with pytest.raises(ConfigError, match=r"already|has such a key"):
        write_field(cache.url, "latents", lambda _: {}, arrays=ARRAYS["ddim"])
    with pytest.raises(ConfigError, match="column of that name"):
        write_field(cache.url, "score", lambda _: {}, arrays=ARRAYS["ddim"])
    opened = latentcache.open_cache(cache.url)
    with pytest.raises(ConfigError, match=r"read by steps.*ddim, ddim\.scores, ddim\.texts"):
        opened.steps("ddim.timesteps", "9x16x16-0003")


@pytest.mark.slow
def test_integers_that_do_not_fit_are_refused(cache: Synthetic) -> None:
    array = FieldArray(shape=(2,), dtype="uint8")
    with pytest.raises(ConfigError, match="uint8 cannot hold"):
        write_field(cache.url, "x", lambda _: {"x": [1, 300]}, arrays=array)
    write_field(cache.url, "y", lambda _: {"y": [1, 255]}, arrays=array)
    assert latentcache.open_cache(cache.url)[0]["y"].tolist() == [1, 255]


@pytest.mark.slow
def test_parquet_caches_have_them_too(tmp_path: Path) -> None:
    cache = write(tmp_path, format="parquet")
    make_field(cache)
    key = "9x16x16-0003"
    steps = latentcache.open_cache(cache.url).steps("ddim", key)
    assert torch.equal(steps[-1], arrays_of(cache, key)["ddim"][-1])


def test_masks_of_pixels_become_masks_of_latents() -> None:
    spec = make_spec()  # stride 4, 8, 8; the first latent frame is of one pixel frame
    masks = torch.zeros(9, 16, 16, dtype=torch.bool)
    masks[0, 0, 0] = masks[4, 15, 7] = masks[5, 8, 8] = True
    found = latentcache.latent_masks(masks, spec)
    expected = torch.zeros(3, 2, 2, dtype=torch.bool)
    expected[0, 0, 0] = expected[1, 1, 0] = expected[2, 1, 1] = True
    assert torch.equal(found, expected)
    with pytest.raises(ConfigError, match="bool"):
        latentcache.latent_masks(masks.float(), spec)


def test_resume_says_what_a_program_has_left_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = cache_of(tmp_path, [f"caption {n}" for n in range(5)])
    array = FieldArray(shape=(2,), dtype="float32")

    def stopped(_: str) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_field(cache.storage.url, "x", stopped, arrays=array)
    assert resume_fields(cache, []) == 0
    assert "x: 5 clips are missing; its values come from a program" in capsys.readouterr().out
    write_field(cache.storage.url, "x", lambda _: {"x": [1, 2]}, arrays=array)
    assert resume_fields(cache, []) == 0
    assert "missing" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_arrays_may_be_shorter_and_have_their_mask(cache: Synthetic, side: Any) -> None:
    lengths = {key: 1 + n % 4 for n, key in enumerate(sorted(cache.arrays))}
    array = FieldArray(shape=(4, 3), dtype="float32", padding="mask", side=side)

    def make(key: str) -> Mapping[str, Any]:
        return {"ddim": torch.full((lengths[key], 3), float(lengths[key]))}

    make_field(cache, make, arrays={"ddim": array})
    for batch in LatentLoader(cache.url, batch_size=2, fields=["ddim"]):
        for n, key in enumerate(batch["key"]):
            own = slice(4 - lengths[key], 4) if side == "left" else slice(lengths[key])
            expected = torch.zeros(4, 3)
            expected[own] = lengths[key]
            assert torch.equal(batch["ddim"][n], expected)
            assert torch.equal(batch["ddim_mask"][n], expected[:, 0] > 0)
    with pytest.raises(ConfigError, match=r"is \[5, 3\], and the field has up to \[4, 3\]"):
        write_field(cache.url, "more", lambda _: {"more": torch.ones(5, 3)}, arrays=array)
