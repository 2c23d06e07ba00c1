"""A cache's quantiser: from its ids to vectors, without the encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from latentcache.core.codebook import MultiScaleCodebook
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError, CorruptionError

_CODES = ("embedding.weight", "weight")


@dataclass(frozen=True)
class Quantiser:
    """A cache's quantiser, on the CPU. tensors: as `quantiser.safetensors` has them, float32."""

    spec: LatentSpec
    tensors: Mapping[str, torch.Tensor]

    @property
    def has_codebook(self) -> bool:
        """Whether the tensors have what they should: a stranger's cache may name any."""
        return any(name in self.tensors and self.tensors[name].ndim == 2 for name in _CODES)

    @property
    def codebook(self) -> torch.Tensor:
        """The vector of each id, float32 [codes, D]."""
        found = (self.tensors[name] for name in _CODES if name in self.tensors)
        return next(tensor for tensor in found if tensor.ndim == 2)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors of ids of any integer type and shape: float32 [.., D]. Raises ConfigError."""
        return torch.nn.functional.embedding(self._checked(ids), self.codebook)

    def teacher_input(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a VAR transformer's input for multi-scale ids [B, n]: float32 [B, n - 1, D].

        Raises ConfigError.
        """
        scales = self.spec.ids.scales if self.spec.ids else ()
        if not scales:
            raise ConfigError(
                f"{self.spec.model_class} has no multi-scale ids, of which a teacher input is made, as "
                "encoder.kind var has. For the vectors of ids use `vectors`."
            )
        num = sum(side * side for side in scales)
        if ids.ndim != 2 or ids.shape[1] != num:
            raise ConfigError(f"a teacher input is made of ids [B, {num}], not {list(ids.shape)}")
        with torch.no_grad():
            return self._multi_scale.teacher_input(self._checked(ids))

    def _checked(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ids as int64 on the CPU."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ConfigError(f"ids are whole numbers, not {ids.dtype}")
        ids = ids.to("cpu", torch.int64)
        num = len(self.codebook)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num):
            raise ConfigError(
                f"the codebook has the ids 0 to {num - 1}, and these go from {int(ids.min())} to "
                f"{int(ids.max())}. Take special ids, such as masks, and offsets out first."
            )
        return ids

    @functools.cached_property
    def _multi_scale(self) -> MultiScaleCodebook:
        assert self.spec.ids is not None
        phis = sum(name.endswith(".bias") for name in self.tensors)
        codes, channels = self.codebook.shape
        with torch.device("meta"):
            found = MultiScaleCodebook(codes, channels, phis, self.spec.ids.scales)
        try:
            found.load_state_dict(dict(self.tensors), strict=True, assign=True)
        except RuntimeError as error:
            raise CorruptionError(
                f"the cache's quantiser is none of multi-scale ids: {error}. Restore it from a copy."
            ) from None
        return found.requires_grad_(False)
