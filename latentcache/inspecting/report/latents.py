"""What a sample of latents looks like: by channel, or by id for discrete tokenizers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from latentcache.core import posterior
from latentcache.core.dtypes import Array
from latentcache.core.spec import IdSpec, LatentSpec, Normaliser

#: Values kept for histograms: in all, and per channel of a clip.
MAX_VALUES, MAX_CLIP_VALUES = 1 << 22, 4096
#: A channel is dead below, and exploding above, these multiples of its expected standard deviation: 1
#: after the cache's normaliser, or the channels' median if there is none. The channels of the published
#: models lie between 0.2 and 5.
DEAD, EXPLODING = 0.02, 20.0

Verdict = Literal["dead", "exploding", "ok"]


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Float64 arrays [C] over all values of the clips. values: [C, n], some of them, for histograms.

    normal_mean, normal_std: after the cache's normaliser. shift, scale: the normaliser's; if it has
    values per latent frame, their mean. posterior_std: mean over the posteriors of stored moments.
    """

    num_clips: int
    mean: Array
    std: Array
    minimum: Array
    maximum: Array
    normal_mean: Array
    normal_std: Array
    shift: Array
    scale: Array
    posterior_std: Array | None
    values: Array
    is_normalised: bool

    def verdicts(self) -> list[Verdict]:
        """Tell which channels carry nothing, and which are far larger than the others."""
        expected = 1.0 if self.is_normalised else float(np.median(self.normal_std))
        size = np.sqrt(np.square(self.normal_std) + np.square(self.normal_mean))
        return [
            _verdict(std, rms, expected) for std, rms in zip(self.normal_std, size, strict=True)
        ]


def _verdict(std: float, rms: float, expected: float) -> Verdict:
    if std <= DEAD * expected:
        return "dead"
    return "exploding" if rms > EXPLODING * expected else "ok"


@dataclass(frozen=True, kw_only=True)
class IdStatistics:
    """How ids are used. counts: of each id that occurs, descending. Entropy is the empirical one."""

    num_clips: int
    codebook_size: int
    counts: Array

    @property
    def num_ids(self) -> int:
        """How many ids were counted; each occurrence counts."""
        return int(self.counts.sum())

    @property
    def usage(self) -> float:
        """The fraction of the codebook that occurs."""
        return len(self.counts) / self.codebook_size

    @property
    def entropy_bits(self) -> float:
        """Entropy of the ids' frequencies, in bits."""
        frequencies = self.counts / self.counts.sum()
        return float(-(frequencies * np.log2(frequencies)).sum())

    @property
    def perplexity(self) -> float:
        """The number of equally frequent ids that has this entropy."""
        return float(2**self.entropy_bits)


Statistics = ChannelStatistics | IdStatistics


def describe_latents(samples: Iterable[torch.Tensor], spec: LatentSpec) -> Statistics | None:
    """Return statistics of stored samples, as the cache gives them; None if there are none."""
    if spec.ids is not None:
        return _ids(samples, spec.ids)
    return _channels(samples, spec)


def _ids(samples: Iterable[torch.Tensor], ids: IdSpec) -> IdStatistics | None:
    totals: dict[int, int] = {}
    num_clips = 0
    for num_clips, sample in enumerate(samples, 1):  # noqa: B007 read after the loop
        found, counts = np.unique(sample.numpy(), return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            totals[value] = totals.get(value, 0) + count
    if not num_clips:
        return None
    counts = np.array(sorted(totals.values(), reverse=True))
    return IdStatistics(num_clips=num_clips, codebook_size=ids.codebook_size, counts=counts)


class _Moments:
    """Sums over clips, float64 [C]."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Array = np.zeros(())
        self.squares: Array = np.zeros(())

    def add(self, values_Cn: torch.Tensor) -> None:
        self.count += values_Cn.shape[1]
        self.sum = self.sum + values_Cn.sum(1, dtype=torch.float64).numpy()
        self.squares = self.squares + values_Cn.double().square().sum(1).numpy()

    @property
    def mean(self) -> Array:
        return self.sum / self.count

    @property
    def std(self) -> Array:
        return np.sqrt(np.maximum(self.squares / self.count - np.square(self.mean), 0))


def _channels(samples: Iterable[torch.Tensor], spec: LatentSpec) -> ChannelStatistics | None:
    raw, normal, spread = _Moments(), _Moments(), _Moments()
    kept: list[Array] = []
    lows: list[Array] = []
    highs: list[Array] = []
    for sample in samples:
        latents = sample.float()
        if spec.stored == "moments":
            latents, logvar = posterior.split(latents)
            spread.add(torch.exp(0.5 * logvar).flatten(1))
        flat = latents.flatten(1)
        raw.add(flat)
        normal.add(posterior.normalise(latents, spec.normaliser).flatten(1))
        lows.append(flat.amin(1).numpy())
        highs.append(flat.amax(1).numpy())
        kept.append(_some(flat, spec.channels))
    if not kept:
        return None
    shift, scale = normaliser_values(spec.normaliser, spec.channels)
    return ChannelStatistics(
        num_clips=len(kept),
        mean=raw.mean,
        std=raw.std,
        minimum=np.min(lows, axis=0),
        maximum=np.max(highs, axis=0),
        normal_mean=normal.mean,
        normal_std=normal.std,
        shift=shift,
        scale=scale,
        posterior_std=spread.mean if spread.count else None,
        values=np.concatenate(kept, axis=1)[:, : MAX_VALUES // spec.channels],
        is_normalised=spec.normaliser.kind in ("channel", "channel_frame"),
    )


def _some(values_Cn: torch.Tensor, channels: int) -> Array:
    """Return some values of every channel, evenly over the clip."""
    wanted = max(1, min(MAX_CLIP_VALUES, MAX_VALUES // (64 * channels)))
    step = -(-values_Cn.shape[1] // wanted)
    some: Array = values_Cn[:, ::step].numpy()
    return some


def normaliser_values(normaliser: Normaliser, channels: int) -> tuple[Array, Array]:
    """Return shift and scale, float64 [C]; if the normaliser has values per latent frame, their means."""
    return _of_channels(normaliser.shift, channels), _of_channels(normaliser.scale, channels)


def _of_channels(values: Sequence[float], channels: int) -> Array:
    array: Array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return np.repeat(array, channels)
    means: Array = array.reshape(channels, -1).mean(axis=1)
    return means
