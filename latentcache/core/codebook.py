"""From ids to the vectors that they stand for: plain codebooks, and VAR's of several scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

#: How far `Phi` goes from its input to its convolution. It is no tensor and equal in all published weights.
PHI_RATIO = 0.5


class Phi(nn.Conv2d):
    """A 3x3 convolution, mixed with its input, which every upsampled scale passes through."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h_BChw: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        return h_BChw * (1 - PHI_RATIO) + super().forward(h_BChw) * PHI_RATIO


class Phis(nn.Module):
    """The convolutions, fewer than scales; each scale uses the nearest one, all placed from 0 to 1."""

    def __init__(self, channels: int, number: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels) for _ in range(number))
        edge = 1 / 3 / number if number == 4 else 1 / 2 / number  # as published
        self._places = np.linspace(edge, 1 - edge, number)

    def of(self, place: float) -> nn.Module:
        """Return the convolution of a scale."""
        return self.qresi_ls[int(np.argmin(np.abs(self._places - place)))]


class MultiScaleCodebook(nn.Module):
    """VAR's codebook (Tian et al. 2024, arXiv:2404.02905), from the coarsest scale to the finest."""

    def __init__(self, codes: int, channels: int, phis: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        self.quant_resi = Phis(channels, phis)
        self.scales = tuple(scales)

    def to_latents(self, ids_Bn: torch.Tensor) -> torch.Tensor:
        """Return the sum of all scales, [B, C, h, w]."""
        parts = [self.part(i, ids) for i, ids in enumerate(self._by_scale(ids_Bn))]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def teacher_input(self, ids_Bn: torch.Tensor) -> torch.Tensor:
        """Return a VAR transformer's input for each id but the first, [B, n - 1, C]."""
        total = torch.zeros(())
        inputs = []
        for i, ids in enumerate(self._by_scale(ids_Bn)[:-1]):
            total = self.part(i, ids) + total.to(ids.device)
            side = self.scales[i + 1]
            inputs.append(functional.interpolate(total, (side, side), mode="area").flatten(2))
        return torch.cat(inputs, dim=2).transpose(1, 2)

    @property
    def last(self) -> int:
        """The number of the finest scale."""
        return len(self.scales) - 1

    def _by_scale(self, ids_Bn: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(ids_Bn, [side * side for side in self.scales], dim=1)

    def part(self, i: int, ids_Bn: torch.Tensor) -> torch.Tensor:
        """Return what scale `i` adds to the latents, [B, C, h, w] at the last scale's sides."""
        side, full = self.scales[i], self.scales[-1]
        codes_BChw = self.embedding(ids_Bn).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if i < self.last:
            codes_BChw = functional.interpolate(codes_BChw, (full, full), mode="bicubic")
        part: torch.Tensor = self.quant_resi.of(i / self.last)(codes_BChw.contiguous())
        return part
