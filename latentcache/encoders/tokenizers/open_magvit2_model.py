"""The tokenizers of Open-MAGVIT2 (Luo et al. 2024, arXiv:2409.04410), by their parameter names.

That of videos: convolutions see no later frame, but every GroupNorm takes its statistics over all frames of
the clip. So a prefix of a clip has other codes than the clip. That of images is the same network with
2-D convolutions; its first release, which 1xgpt uses, has no adaptive norms in the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from latentcache.encoders.tokenizers.discrete import per_frame
from latentcache.encoders.tokenizers.lookup_free import BitOrder, bits_to_ids, ids_to_bits
from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint

_GROUPS, _EPSILON = 32, 1e-6
_Steps = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a tokenizer; `widths` has one entry per level, from full resolution down.

    images: its convolutions are 2-D. adaptive: the decoder's norms follow the codes.
    """

    stem: int
    widths: tuple[int, ...]
    blocks: int
    bits: int
    images: bool
    adaptive: bool

    @property
    def steps(self) -> list[_Steps]:
        """The factors by which levels reduce T, H, W, all but the last; T only in wider ones."""
        return [(1 if self.images or width == self.stem else 2, 2, 2) for width in self.widths[:-1]]

    @property
    def conv(self) -> type[ImageConv | CausalConv]:
        """What its convolutions are."""
        return ImageConv if self.images else CausalConv

    @property
    def bit_order(self) -> BitOrder:
        """Which end of an id channel 0 is on: in the image tokenizer's first release the other one."""
        return "msb_first" if self.images and not self.adaptive else "lsb_first"

    @property
    def stride(self) -> _Steps:
        """Pixels per id along T, H, W."""
        frames, pixels = 1, 1 << len(self.steps)
        for step in self.steps:
            frames *= step[0]
        return (frames, pixels, pixels)

    @classmethod
    def of(cls, loaded: TrainerCheckpoint) -> Shape:
        """Read the architecture off a checkpoint. Raises EncoderError where it is of another kind."""
        images = "encoder.conv_in.weight" in loaded.tensors
        conv, axes = ("", 4) if images else ("conv_1.", 5)
        stem = loaded.shape(f"encoder.conv_in.{conv}weight", axes)[0]
        levels = range(max(1, loaded.count("encoder.down.{}.")))
        return cls(
            stem=stem,
            widths=tuple(
                loaded.shape(f"encoder.down.{i}.block.0.conv1.{conv}weight", axes)[0]
                for i in levels
            ),
            blocks=loaded.count("encoder.down.0.block.{}."),
            bits=loaded.shape(f"encoder.conv_out.{conv}weight", axes)[0],
            images=images,
            adaptive=loaded.count("decoder.adaptive.{}.") > 0,
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPSILON)


class CausalConv(nn.Module):
    """A 3-D convolution with zero padding: in time only before the first frame, in space on all sides."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: _Steps = (1, 1, 1),
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._pad = [*[kernel // 2] * 4, kernel - 1, 0]
        self.conv_1 = nn.Conv3d(inputs, outputs, kernel, stride=stride, bias=bias)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, T / stride rounded up, ...]."""
        result: torch.Tensor = self.conv_1(functional.pad(x_BCTHW, self._pad))
        return result


class ImageConv(nn.Conv2d):
    """A 2-D convolution with zero padding; of the steps only those of H and W count."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: _Steps = (1, 1, 1),
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride[1:], padding=kernel // 2, bias=bias)


Conv = type[CausalConv | ImageConv]


class Residual(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, inputs: int, outputs: int, conv: Conv) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = conv(inputs, outputs, bias=False)
        self.norm2 = _norm(outputs)
        self.conv2 = conv(outputs, outputs, bias=False)
        self.nin_shortcut = (
            conv(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        )

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, T, H, W]; images have no T here and below."""
        h = self.conv1(functional.silu(self.norm1(x_BCTHW)))
        h = self.conv2(functional.silu(self.norm2(h)))
        result: torch.Tensor = self.nin_shortcut(x_BCTHW) + h
        return result


class Upsample(nn.Module):
    """A convolution whose channels become 2x2 or 2x2x2 pixels; the first frame is not doubled."""

    def __init__(self, channels: int, step: _Steps, conv: Conv) -> None:
        super().__init__()
        self._step = step
        self.conv1 = conv(channels, channels * step[0] * step[1] * step[2])

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, C, 1 + (T - 1) * step, 2H, 2W]."""
        if x_BCTHW.ndim == 4:
            return self._larger(self.conv1(x_BCTHW).unsqueeze(2)).squeeze(2)
        return self._larger(self.conv1(x_BCTHW))

    def _larger(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        num, _, *size = x_BCTHW.shape
        folded = x_BCTHW.reshape(num, *self._step, -1, *size)  # [B, t, h, w, C, T, H, W]
        interleaved = folded.permute(0, 4, 5, 1, 6, 2, 7, 3)
        larger: torch.Tensor = interleaved.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if self._step[0] == 1:
            return larger
        # Both of the first two frames are made from the first latent; the first one is kept.
        return torch.cat([larger[:, :, :1], larger[:, :, 2:]], dim=2)


class AdaptiveNorm(nn.Module):
    """A GroupNorm whose scale and shift come from the spread and the mean of the codes."""

    def __init__(self, bits: int, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(_GROUPS, channels, eps=_EPSILON, affine=False)
        self.gamma = nn.Linear(bits, channels)
        self.beta = nn.Linear(bits, channels)

    def forward(self, x_BCTHW: torch.Tensor, codes_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        flat = codes_BCthw.flatten(2)
        each = (*x_BCTHW.shape[:2], *[1] * (x_BCTHW.ndim - 2))
        scale = self.gamma((flat.var(-1) + _EPSILON).sqrt()).view(each)
        result: torch.Tensor = self.gn(x_BCTHW) * scale + self.beta(flat.mean(-1)).view(each)
        return result


class Level(nn.Module):
    """The blocks of one resolution, and the layer that changes the resolution."""

    def __init__(self, inputs: int, outputs: int, shape: Shape) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * shape.blocks
        self.block = nn.ModuleList(Residual(*pair, shape.conv) for pair in pairwise(widths))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, ...]."""
        for module in (*self.block, self.downsample, self.upsample):
            if module is not None:
                x_BCTHW = module(x_BCTHW)
        return x_BCTHW


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] to one number per bit, [B, bits, t, h, w]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv_in = shape.conv(3, shape.stem, bias=False)
        inputs = (shape.stem, *shape.widths)
        self.down = nn.ModuleList(
            Level(inputs[i], width, shape) for i, width in enumerate(shape.widths)
        )
        for level, width, step in zip(self.down, shape.widths, shape.steps, strict=False):
            level.downsample = shape.conv(width, width, stride=step)
        width = shape.widths[-1]
        self.mid_block = nn.ModuleList(
            Residual(width, width, shape.conv) for _ in range(shape.blocks)
        )
        self.norm_out = _norm(width)
        self.conv_out = shape.conv(width, shape.bits, 1)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the numbers whose signs are the bits."""
        h = self.conv_in(x_BCTHW)
        for module in (*self.down, *self.mid_block):
            h = module(h)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return result


class Decoder(nn.Module):
    """Codes of -1 and 1, [B, bits, t, h, w], to pixels [B, 3, T, H, W]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.widths[-1]
        self.conv_in = shape.conv(shape.bits, width)
        self.mid_block = nn.ModuleList(
            Residual(width, width, shape.conv) for _ in range(shape.blocks)
        )
        inputs = (*shape.widths[1:], width)
        self.up = nn.ModuleList(
            Level(inputs[i], width, shape) for i, width in enumerate(shape.widths)
        )
        for level, width, step in zip(
            list(self.up)[1:], shape.widths[1:], shape.steps, strict=True
        ):
            level.upsample = Upsample(width, step, shape.conv)
        self.adaptive = nn.ModuleList(
            AdaptiveNorm(shape.bits, width) for width in inputs if shape.adaptive
        )
        self.norm_out = _norm(shape.widths[0])
        self.conv_out = shape.conv(shape.widths[0], 3)

    def forward(self, codes_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the pixels, not clamped."""
        h = self.conv_in(codes_BCthw)
        for block in self.mid_block:
            h = block(h)
        for i, level in reversed(list(enumerate(self.up))):
            h = level(self.adaptive[i](h, codes_BCthw) if len(self.adaptive) else h)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return result


class OpenMagvit2(nn.Module):
    """A `discrete.Tokenizer`; pixel values in [-1, 1]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._bits, self._order, self._images = shape.bits, shape.bit_order, shape.images
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)

    def to_latents(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return what is quantised, [B, bits, t, h, w]; of images [N, bits, h, w]."""
        latents: torch.Tensor = self.encoder(values_BCTHW)
        return latents

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [B, t, h, w]."""
        if self._images:
            return per_frame(self._ids, values_BCTHW.transpose(1, 2))
        return self._ids(values_BCTHW)

    def _ids(self, values: torch.Tensor) -> torch.Tensor:
        return bits_to_ids(self.to_latents(values).movedim(1, -1), self._order)

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values [B, 3, T, H, W]."""
        codes = ids_to_bits(ids, self._bits, self._order).float() * 2 - 1  # [B, t, h, w, bits]
        if self._images:
            return per_frame(self.decoder, codes.movedim(-1, 2)).transpose(1, 2)
        values: torch.Tensor = self.decoder(codes.movedim(-1, 1).contiguous())
        return values
