"""The VQ-VAE of VideoGPT (Yan et al. 2021, arXiv:2104.10157), by the parameter names of its checkpoints.

Axes: B batch, C channels, T H W at the network's current reduction; L positions along one axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from latentcache.encoders.tokenizers.discrete import nearest_code

#: Attention heads of every block; the published model has no setting for them.
HEADS = 2
_KERNEL = 4
#: A factor along each of T, H, W.
Steps = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a VQ-VAE. stride: pixels per code along T, H, W, powers of 2, at least one of them 4."""

    hidden: int
    blocks: int
    codes: int
    code_channels: int
    stride: Steps

    @property
    def steps(self) -> list[Steps]:
        """Strides of the downsampling convolutions: each halves every axis that must still be halved."""
        halvings = [size.bit_length() - 1 for size in self.stride]
        return [
            (1 + (halvings[0] > i), 1 + (halvings[1] > i), 1 + (halvings[2] > i))
            for i in range(max(halvings))
        ]


class SamePad(nn.Module):
    """Zero padding with which a convolution divides each axis by its stride; an odd zero goes in front."""

    def __init__(self, kernel: int, stride: Steps) -> None:
        super().__init__()
        totals = [
            kernel - step for step in reversed(stride)
        ]  # functional.pad begins with the last axis
        self._pad = [side for total in totals for side in (total - total // 2, total // 2)]

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the padded input."""
        return functional.pad(x_BCTHW, self._pad)


class Conv(nn.Module):
    """A 3-D convolution with `SamePad`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: Steps = (1, 1, 1),
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pad = SamePad(kernel, stride)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, bias=bias)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, T / stride, ...]."""
        result: torch.Tensor = self.conv(self.pad(x_BCTHW))
        return result


class Upsample(nn.Module):
    """A transposed 3-D convolution that multiplies each axis by its stride."""

    def __init__(self, inputs: int, outputs: int, stride: Steps) -> None:
        super().__init__()
        self.pad = SamePad(_KERNEL, stride)
        self.convt = nn.ConvTranspose3d(
            inputs, outputs, _KERNEL, stride=stride, padding=_KERNEL - 1
        )

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, T * stride, ...]."""
        result: torch.Tensor = self.convt(self.pad(x_BCTHW))
        return result


class AxisAttention(nn.Module):
    """Self-attention along one axis of a channels-last volume; the other axes are batch."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self._axis = axis
        self.w_qs = nn.Linear(channels, channels, bias=False)
        self.w_ks = nn.Linear(channels, channels, bias=False)
        self.w_vs = nn.Linear(channels, channels, bias=False)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        lines = x_BTHWC.movedim(self._axis, -2)  # [.., L, C]
        q, k, v = (
            project(lines).unflatten(-1, (HEADS, -1)).transpose(-2, -3)  # [.., heads, L, C / heads]
            for project in (self.w_qs, self.w_ks, self.w_vs)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(-2, -3).flatten(-2)
        result: torch.Tensor = self.fc(mixed).movedim(-2, self._axis)
        return result


class AxialBlock(nn.Module):
    """The sum of attention along width, height and time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn_w = AxisAttention(channels, 3)
        self.attn_h = AxisAttention(channels, 2)
        self.attn_t = AxisAttention(channels, 1)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        x_BTHWC = x_BCTHW.movedim(1, -1).contiguous()
        mixed: torch.Tensor = self.attn_w(x_BTHWC) + self.attn_h(x_BTHWC) + self.attn_t(x_BTHWC)
        return mixed.movedim(-1, 1).contiguous()


class Residual(nn.Module):
    """Two convolutions and axial attention, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            Conv(channels, channels // 2, 3, bias=False),
            nn.BatchNorm3d(channels // 2),
            nn.ReLU(),
            Conv(channels // 2, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            AxialBlock(channels),
        )

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        result: torch.Tensor = x_BCTHW + self.block(x_BCTHW)
        return result


def _stack(shape: Shape) -> nn.Sequential:
    blocks = [Residual(shape.hidden) for _ in range(shape.blocks)]
    return nn.Sequential(*blocks, nn.BatchNorm3d(shape.hidden), nn.ReLU())


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] to features [B, hidden, t, h, w]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inputs = [3] + [shape.hidden] * (len(shape.steps) - 1)
        self.convs = nn.ModuleList(
            Conv(channels, shape.hidden, _KERNEL, step)
            for channels, step in zip(inputs, shape.steps, strict=True)
        )
        self.conv_last = Conv(inputs[-1], shape.hidden, 3)
        self.res_stack = _stack(shape)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        for conv in self.convs:
            x_BCTHW = conv(x_BCTHW).relu()
        result: torch.Tensor = self.res_stack(self.conv_last(x_BCTHW))
        return result


class Decoder(nn.Module):
    """Features [B, hidden, t, h, w] to pixels [B, 3, T, H, W]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.res_stack = _stack(shape)
        outputs = [shape.hidden] * (len(shape.steps) - 1) + [3]
        self.convts = nn.ModuleList(
            Upsample(shape.hidden, channels, step)
            for channels, step in zip(outputs, shape.steps, strict=True)
        )

    def forward(self, x_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the pixels; no non-linearity follows the last convolution."""
        x = self.res_stack(x_BCthw)
        for i, convt in enumerate(self.convts):
            x = convt(x.relu() if i else x)
        result: torch.Tensor = x
        return result


class Codebook(nn.Module):
    """The codes, and the running sums from which training updates them; encoding does not change them."""

    embeddings: torch.Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.empty(shape.codes, shape.code_channels))
        self.register_buffer("N", torch.empty(shape.codes))
        self.register_buffer("z_avg", torch.empty(shape.codes, shape.code_channels))


class VQVAE(nn.Module):
    """A `discrete.Tokenizer`; pixel values in [-0.5, 0.5]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.pre_vq_conv = Conv(shape.hidden, shape.code_channels, 1)
        self.post_vq_conv = Conv(shape.code_channels, shape.hidden, 1)
        self.codebook = Codebook(shape)

    def to_latents(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return what is quantised, [B, code channels, t, h, w]."""
        latents: torch.Tensor = self.pre_vq_conv(self.encoder(values_BCTHW))
        return latents

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, t, h, w]."""
        latents_BthwC = self.to_latents(values_BCTHW).movedim(1, -1)
        ids = nearest_code(latents_BthwC.flatten(0, -2), self.codebook.embeddings)
        return ids.view(latents_BthwC.shape[:-1])

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, T, H, W]."""
        codes_BCthw = (
            functional.embedding(ids, self.codebook.embeddings).movedim(-1, 1).contiguous()
        )
        values: torch.Tensor = self.decoder(self.post_vq_conv(codes_BCthw))
        return values
