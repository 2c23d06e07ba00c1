"""What the report counts of latents, and how it draws which clips to show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentcache.core.image_quality import Quality
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.inspecting.choose import draw_stratified
from latentcache.inspecting.report.latents import ChannelStatistics, IdStatistics, describe_latents
from latentcache.inspecting.report.markup import Markup, h
from latentcache.inspecting.report.reconstructions import psnr_by_position
from tests.tools.synthetic import make_spec


def channels(clips: list[torch.Tensor], spec: LatentSpec) -> ChannelStatistics:
    found = describe_latents(clips, spec)
    assert isinstance(found, ChannelStatistics)
    return found


def test_statistics_are_those_of_all_values_before_and_after_the_normaliser() -> None:
    spec = make_spec()
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(4, t, 4, 6, generator=generator).bfloat16() for t in (2, 3)]
    found = channels(clips, spec)
    values = torch.cat([clip.double().flatten(1) for clip in clips], dim=1).numpy()
    np.testing.assert_allclose(found.mean, values.mean(1))
    np.testing.assert_allclose(found.std, values.std(1))
    np.testing.assert_array_equal(found.maximum, values.max(1))
    shift, scale = np.array(spec.normaliser.shift), np.array(spec.normaliser.scale)
    np.testing.assert_allclose(found.normal_mean, (values.mean(1) - shift) * scale, atol=1e-6)
    np.testing.assert_allclose(found.normal_std, values.std(1) * scale, rtol=1e-6)
    assert found.posterior_std is None
    assert found.verdicts() == ["ok"] * 4


def test_moments_are_split_and_channels_that_carry_nothing_are_flagged() -> None:
    spec = make_spec(stored="moments")
    mean = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    mean[1] = 0.25
    mean[3] *= 1000
    logvar = torch.full_like(mean, 2 * math.log(0.5))
    found = channels([torch.cat([mean, logvar])], spec)
    assert found.verdicts() == ["ok", "dead", "ok", "exploding"]
    assert found.posterior_std is not None
    np.testing.assert_allclose(found.posterior_std, 0.5, rtol=1e-6)
    plain = make_spec()
    without = LatentSpec(**{**vars(plain), "normaliser": Normaliser(kind="scale", scale=(0.1,))})
    assert channels([mean], without).verdicts() == ["ok", "dead", "ok", "exploding"]


def test_ids_are_counted_over_clips() -> None:
    spec = LatentSpec(**{**vars(make_spec("uint8", "ids")), "ids": IdSpec(codebook_size=64)})
    clips = [torch.tensor([[[0, 0, 1, 1]]]).byte(), torch.tensor([[[2, 2, 3, 3]]]).byte()]
    found = describe_latents(clips, spec)
    assert isinstance(found, IdStatistics)
    assert (found.num_ids, found.usage, found.entropy_bits, found.perplexity) == (8, 4 / 64, 2, 4)
    assert describe_latents([], spec) is None


def test_psnr_is_by_position_in_the_group() -> None:
    causal = make_spec()
    quality = Quality(mse=(1.0, 4.0, 9.0, 16.0, 25.0, 4.0, 9.0, 16.0, 25.0), ssim=())
    found = psnr_by_position([(quality, 9)], causal)
    expected = {"first": 1, "1": 4, "2": 9, "3": 16, "4": 25}
    assert found == pytest.approx({k: 10 * math.log10(255**2 / v) for k, v in expected.items()})
    assert list(found) == list(expected)
    even = LatentSpec(**{**vars(causal), "frame_rule": FrameRule(multiple=4)})
    fewer = Quality(mse=(1.0, 4.0, 9.0, 16.0, 1.0), ssim=())
    assert list(psnr_by_position([(fewer, 8)], even)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("num", [1, 3, 10, 50, 1000])
def test_samples_are_distinct_and_of_every_bucket(num: int) -> None:
    counts = [30, 0, 2, 500, 1]
    drawn = draw_stratified(counts, num, seed=1)
    assert len(drawn) == len(set(drawn)) == min(num, sum(counts))
    assert all(0 <= n < sum(counts) for n in drawn)
    assert drawn == draw_stratified(counts, num, seed=1)
    ends = np.cumsum(counts)
    groups = [int(np.searchsorted(ends, n, side="right")) for n in drawn]
    assert groups[:4] == [3, 0, 2, 4][: min(num, 4)]
    if 10 <= num < sum(counts):
        assert drawn != draw_stratified(counts, num, seed=2)


def test_markup_escapes_whatever_is_not_markup() -> None:
    made = h("p", "<i>", [Markup("<br>"), "&"], None, 3, title='"><script>', class_="x")
    assert made == '<p title="&quot;&gt;&lt;script&gt;" class="x">&lt;i&gt;<br>&amp;3</p>'
