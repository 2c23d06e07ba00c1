"""What is done to latents between storage and training: posterior samples, normaliser, dtype.

The sums are the same, in the same order and in float32, on any device, and so is the noise. So a sample
is the same on every device, up to the last bit of the device's own `exp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from latentcache.core import posterior as posteriors
from latentcache.core.arguments import one_of, yes_or_no
from latentcache.core.dtypes import AnyDtype, resolve_dtype, torch_dtype
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError

Posterior = Literal["sample", "mode"]


class Transform:
    """Makes latents from what is stored, for single samples and for batches. Thread-safe."""

    def __init__(
        self,
        spec: LatentSpec,
        *,
        posterior: Posterior,
        normalise: bool,
        dtype: AnyDtype | None,
        seed: int,
        cuts: Mapping[int, int] | None = None,
    ) -> None:
        one_of("posterior", posterior, get_args(Posterior))
        self._normaliser = spec.normaliser
        self._normalises = yes_or_no("normalise", normalise) and spec.normaliser.kind != "none"
        self._has_moments = spec.stored == "moments"
        self._seed = seed
        #: Latent frames that are kept, by how many are stored; all of them if there is no entry.
        self._cuts = dict(cuts or {})
        self._values: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self.stored_dtype = torch_dtype(spec.dtype)
        # torch.nn.Embedding takes no other ids.
        self.dtype = self.stored_dtype if spec.ids is None else torch.int64
        if dtype is not None:
            self.dtype = resolve_dtype(dtype, integers=spec.ids is not None)
        if spec.ids is not None and torch.iinfo(self.dtype).max < spec.ids.codebook_size - 1:
            name = str(self.dtype).removeprefix("torch.")
            raise ConfigError(
                f"dtype {name!r} holds ids up to {torch.iinfo(self.dtype).max}, and the codebook has "
                f"{spec.ids.codebook_size}: others would come out as wrong ids. Use int32 or int64."
            )
        #: Whether noise is wanted.
        self.draws = self._has_moments and posterior == "sample"
        #: Whether samples have the stored shape and dtype, so that they can be read into their final place.
        self.in_place = not (self._has_moments or self._cuts) and self.dtype == self.stored_dtype
        #: Whether samples that were read in place need nothing more.
        self.idle = self.in_place and not self._normalises

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a sample: [C, t, h, w] if [2C, t, h, w] is stored, else the same.

        t is smaller if latent frames are cut off.
        """
        if self._cuts:
            *first, t, h, w = stored
            stored = (*first, self._cuts.get(t, t), h, w)
        return (stored[0] // 2, *stored[1:]) if self._has_moments else stored

    def draw(self, noise: torch.Tensor, key: str, epoch: int) -> None:
        """Fill float32 noise [C, t, h, w] on the CPU; it depends only on (seed, epoch, key)."""
        posteriors.draw_(noise, self.noise_seed(key, epoch))

    def noise_seed(self, key: str, epoch: int) -> int:
        """Return the seed of a clip's noise in an epoch."""
        return posteriors.sample_seed(self._seed, epoch, key)

    def of_frames(
        self,
        stored: torch.Tensor,
        frames: Sequence[int] | None,
        whole: tuple[int, ...],
        key: str,
        epoch: int,
    ) -> torch.Tensor:
        """Return the latents [C, n, h, w] of some latent frames of a clip: those of the whole clip there.

        stored: what is stored of these frames. frames: None for all. whole: the shape of what is stored of
        the whole clip.
        """
        work, noise = torch.empty(self.shape(tuple(stored.shape)), dtype=torch.float32), None
        if self.draws:
            shape = self.shape(whole)
            seed = self.noise_seed(key, epoch)
            if frames is None:
                noise = posteriors.draw_(torch.empty(shape, dtype=torch.float32), seed)
            else:
                noise = posteriors.draw_frames(shape, frames, seed)
        return self(stored, noise, work, frames).to(self.dtype)

    def __call__(
        self,
        stored: torch.Tensor,
        noise: torch.Tensor | None,
        work: torch.Tensor,
        frames: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return the latents of one sample or of a batch: a view of `stored`, or `work`.

        noise: if `draws`; it is overwritten. work: memory to compute in. Both are float32, of the
        latents' shape, on the device of what is stored. frames: which of the clip's latent frames these
        are, where it is not the first ones.
        """
        if self._cuts:
            stored = stored[..., : self._cuts.get(stored.shape[-3]), :, :]
        latents = posteriors.split(stored)[0] if self._has_moments else stored
        if noise is None and not self._normalises:
            return latents
        if noise is None:
            work.copy_(latents)
        else:
            posteriors.sample_into(work, *posteriors.split(stored), noise)
        if self._normalises:
            shift, scale = self._shift_and_scale(work, frames)
            work.sub_(shift).mul_(scale)
        return work

    def _shift_and_scale(
        self, latents: torch.Tensor, frames: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if frames is not None and self._normaliser.kind == "channel_frame":
            first = latents[:, :1].expand(-1, max(frames) + 1, -1, -1)
            shift, scale = posteriors.shift_and_scale(first, self._normaliser)
            return shift[:, list(frames)], scale[:, list(frames)]
        key = (latents.device, latents.shape[-4:-2])
        if key not in self._values:
            self._values[key] = posteriors.shift_and_scale(latents, self._normaliser)
        return self._values[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": {}}
