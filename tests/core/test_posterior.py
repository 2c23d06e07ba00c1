from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentcache.core import posterior
from latentcache.core.spec import Normaliser

CHANNEL = Normaliser(kind="channel", shift=(0.5, -1.0), scale=(2.0, 0.25))


def moments(batch: int = 3, channels: int = 2) -> torch.Tensor:
    shape = (batch, 2 * channels, 3, 4, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_split_gives_mean_then_logvar_with_batch_and_without() -> None:
    both = moments()
    mean, logvar = posterior.split(both)
    assert torch.equal(torch.cat([mean, logvar], dim=1), both)
    assert torch.equal(posterior.split(both[1])[1], logvar[1])


def test_seed_is_pinned_for_ever() -> None:
    assert posterior.sample_seed(0, "a.mp4#0") == 2717941939431307119


@pytest.mark.slow
@given(st.lists(st.integers() | st.text()), st.lists(st.integers() | st.text()))
def test_seeds_of_other_parts_differ(a: list[int | str], b: list[int | str]) -> None:
    assert (posterior.sample_seed(*a) == posterior.sample_seed(*b)) == (a == b)
    assert 0 <= posterior.sample_seed(*a) < 2**63


def test_parts_do_not_run_into_one_another() -> None:
    assert posterior.sample_seed("ab", "c") != posterior.sample_seed("a", "bc")
    assert posterior.sample_seed(1, 2) != posterior.sample_seed("1", 2)


def test_sample_is_mean_plus_std_times_noise() -> None:
    mean, logvar = posterior.split(moments())
    seeds = [3, 1, 2]
    drawn = posterior.sample(mean, logvar, seeds)
    for i, seed in enumerate(seeds):
        noise = posterior.draw_(torch.empty(mean.shape[1:]), seed)
        assert torch.equal(drawn[i], mean[i] + torch.exp(0.5 * logvar[i]) * noise)


def test_sample_does_not_depend_on_the_batch_around_it() -> None:
    mean, logvar = posterior.split(moments())
    drawn = posterior.sample(mean, logvar, [7, 8, 9])
    other = posterior.sample(mean[[2, 0]], logvar[[2, 0]], [9, 7])
    assert torch.equal(other, drawn[[2, 0]])


def test_sample_leaves_the_global_generator_alone() -> None:
    mean, logvar = posterior.split(moments())
    before = torch.get_rng_state()
    posterior.sample(mean, logvar, [1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_is_computed_in_float32() -> None:
    mean, logvar = (half.to(torch.bfloat16) for half in posterior.split(moments()))
    drawn = posterior.sample(mean, logvar, [1, 2, 3])
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, posterior.sample(mean.float(), logvar.float(), [1, 2, 3]))


def test_sample_wants_a_seed_each() -> None:
    mean, logvar = posterior.split(moments())
    with pytest.raises(ValueError, match="3 posteriors need as many seeds, not 2"):
        posterior.sample(mean, logvar, [1, 2])


def test_reduce_gives_what_is_stored() -> None:
    both, keys = moments(), ["a", "b", "c"]
    mean, logvar = posterior.split(both)
    assert torch.equal(posterior.reduce(both, "moments", keys), both)
    assert torch.equal(posterior.reduce(both, "mean", keys), mean)
    seeds = [posterior.sample_seed(0, key) for key in keys]
    assert torch.equal(
        posterior.reduce(both, "sample", keys), posterior.sample(mean, logvar, seeds)
    )


def test_stored_sample_depends_on_the_key_alone() -> None:
    both = moments()
    stored = posterior.reduce(both, "sample", ["a", "b", "c"])
    alone = posterior.reduce(both[1:2], "sample", ["b"])
    assert torch.equal(alone[0], stored[1])
    assert not torch.equal(posterior.reduce(both, "sample", ["x", "b", "c"])[0], stored[0])


def test_latents_without_posterior_are_stored_as_they_are() -> None:
    latents = moments(channels=2)  # four channels, no log-variance among them
    assert torch.equal(posterior.reduce(latents, "mean", ["a", "b", "c"], channels=4), latents)


def test_normalise_subtracts_and_scales_by_channel() -> None:
    latents = torch.stack([torch.full((3, 2, 2), 1.5), torch.full((3, 2, 2), 7.0)])
    normalised = posterior.normalise(latents, CHANNEL)
    assert normalised[0].unique().tolist() == [2.0]
    assert normalised[1].unique().tolist() == [2.0]
    assert torch.equal(posterior.normalise(latents[None], CHANNEL), normalised[None])


@pytest.mark.parametrize(
    "normaliser",
    [
        Normaliser(),
        Normaliser(kind="scale", scale=(1.15258426,)),
        Normaliser(kind="shift_scale", shift=(0.1159,), scale=(0.3611,)),
        CHANNEL,
    ],
    ids=lambda n: n.kind,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unnormalise_inverts_normalise_and_keeps_the_dtype(
    normaliser: Normaliser, dtype: torch.dtype
) -> None:
    latents = posterior.split(moments())[0].to(dtype)
    normalised = posterior.normalise(latents, normaliser)
    assert normalised.dtype == dtype
    restored = posterior.unnormalise(normalised, normaliser)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(restored, latents, atol=tolerance, rtol=tolerance)


def test_normalise_computes_in_float32() -> None:
    latents = torch.full((1, 2, 1, 1, 1), 100.5, dtype=torch.bfloat16)
    by_two = Normaliser(kind="shift_scale", shift=(100.25,), scale=(2.0,))
    assert posterior.normalise(latents, by_two).flatten().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_values_of_channels_and_latent_frames_are_used_from_the_first_on(frames: int) -> None:
    shift, scale = (torch.tensor(v) for v in ([[0.0, 1, 2], [3, 4, 5]], [[1.0, 2, 4], [8, 16, 32]]))
    normaliser = Normaliser(
        kind="channel_frame",
        shift=tuple(shift.flatten().tolist()),
        scale=tuple(scale.flatten().tolist()),
    )
    z = torch.randn(2, 2, frames, 2, 3, generator=torch.Generator().manual_seed(0))
    normalised = posterior.normalise(z, normaliser)
    for c in range(2):
        for t in range(frames):
            assert torch.equal(normalised[:, c, t], (z[:, c, t] - shift[c, t]) * scale[c, t])
    assert torch.equal(posterior.normalise(z[0], normaliser), normalised[0])
    torch.testing.assert_close(posterior.unnormalise(normalised, normaliser), z)


def test_more_latent_frames_than_the_normaliser_has_are_refused() -> None:
    normaliser = Normaliser(kind="channel_frame", shift=(0.0,) * 6, scale=(2.0,) * 6)
    with pytest.raises(ValueError, match=r"do not cover .* 2 channels and 4 latent frames"):
        posterior.normalise(torch.zeros(1, 2, 4, 1, 1), normaliser)
    with pytest.raises(ValueError, match="take the mean of moments"):
        posterior.normalise(torch.zeros(1, 4, 3, 1, 1), normaliser)


def test_moments_are_not_normalised_by_mistake() -> None:
    with pytest.raises(ValueError, match=r"2 values, but the latents .* 4 channels: take the mean"):
        posterior.normalise(moments(), CHANNEL)


@pytest.mark.slow
def test_import_pulls_in_nothing_of_the_write_half() -> None:
    code = (
        "import sys, latentcache.core.posterior\n"
        "assert not {'diffusers', 'ray', 'decord', 'av', 'zarr', 'latentcache.encoders'}"
        " & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
