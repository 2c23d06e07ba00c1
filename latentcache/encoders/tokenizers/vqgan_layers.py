"""The image autoencoder of taming-transformers (arXiv:2012.09841), by its parameter names.

VQGANs and VAR's tokenizer share it. The tensors of a checkpoint show its whole architecture: see
`Shape`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from latentcache.encoders.tokenizers.trainer_checkpoint import TrainerCheckpoint

_GROUPS, _EPSILON = 32, 1e-6


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of an autoencoder. Tuples have one entry per level, from full resolution down.

    fused: one convolution for query, key and value, as in VAR. attention: at which levels the encoder and
    the decoder attend; only the tensors show it. quant_kernel: size of the convolutions on both sides of
    the quantiser.
    """

    stem: int
    widths: tuple[int, ...]
    blocks: int
    encoder_attention: tuple[bool, ...]
    decoder_attention: tuple[bool, ...]
    fused: bool
    latent_channels: int
    code_channels: int
    quant_kernel: int

    @property
    def stride(self) -> int:
        """Pixels per latent along height and width."""
        return 1 << (len(self.widths) - 1)

    @classmethod
    def of(cls, loaded: TrainerCheckpoint) -> Shape:
        """Read the architecture off a checkpoint. Raises EncoderError where it is of another kind."""
        stem = loaded.shape("encoder.conv_in.weight", 4)[0]
        levels = range(max(1, loaded.count("encoder.down.{}.")))
        code_channels, latent_channels, quant_kernel, _ = loaded.shape("quant_conv.weight", 4)
        return cls(
            stem=stem,
            widths=tuple(
                loaded.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels
            ),
            blocks=loaded.count("encoder.down.0.block.{}."),
            encoder_attention=tuple(
                loaded.count(f"encoder.down.{i}.attn.{{}}.") > 0 for i in levels
            ),
            decoder_attention=tuple(loaded.count(f"decoder.up.{i}.attn.{{}}.") > 0 for i in levels),
            fused="encoder.mid.attn_1.qkv.weight" in loaded.tensors,
            latent_channels=latent_channels,
            code_channels=code_channels,
            quant_kernel=quant_kernel,
        )


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPSILON)


class Residual(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, H, W]."""
        h = self.conv1(functional.silu(self.norm1(x_BCHW)))
        h = self.conv2(functional.silu(self.norm2(h)))
        result: torch.Tensor = self.nin_shortcut(x_BCHW) + h
        return result


class Attention(nn.Module):
    """Self-attention over all positions, one head, added to the input."""

    def __init__(self, channels: int, *, fused: bool) -> None:
        super().__init__()
        self.norm = _norm(channels)
        names = {"qkv": 3} if fused else {"q": 1, "k": 1, "v": 1}
        for name, parts in names.items():
            self.add_module(name, nn.Conv2d(channels, parts * channels, 1))
        self._names = tuple(names)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        h = self.norm(x_BCHW)
        parts = [self.get_submodule(name)(h).flatten(2) for name in self._names]
        q, k, v = parts if len(parts) == 3 else parts[0].chunk(3, dim=1)  # [B, C, HW] each
        weights = (torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5).softmax(2)
        mixed = torch.bmm(v, weights.transpose(1, 2)).view_as(x_BCHW)
        result: torch.Tensor = x_BCHW + self.proj_out(mixed)
        return result


class Resize(nn.Module):
    """A convolution that halves height and width (padded right and below), or that follows doubling."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self._up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, C, 2H, 2W] or [B, C, H / 2, W / 2]."""
        x = (
            functional.interpolate(x_BCHW, scale_factor=2.0)
            if self._up
            else functional.pad(x_BCHW, (0, 1, 0, 1))
        )
        result: torch.Tensor = self.conv(x)
        return result


class Middle(nn.Module):
    """What both halves do at the lowest resolution."""

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.block_1 = Residual(width, width)
        self.attn_1 = Attention(width, fused=fused)
        self.block_2 = Residual(width, width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        result: torch.Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return result


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if the level attends."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, *, attends: bool, fused: bool
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(Residual(*pair) for pair in pairwise(widths))
        self.attn = nn.ModuleList(
            Attention(outputs, fused=fused) for _ in range(blocks if attends else 0)
        )
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def _steps(self) -> Iterator[nn.Module]:
        for i, block in enumerate(self.block):
            yield block
            if len(self.attn):
                yield self.attn[i]
        yield from (module for module in (self.downsample, self.upsample) if module is not None)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, outputs, H, W], resized if the level ends with that."""
        for step in self._steps():
            x_BCHW = step(x_BCHW)
        return x_BCHW


class Encoder(nn.Module):
    """Images [B, 3, H, W] to latents [B, latent channels, H / stride, W / stride]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, shape.stem, 3, padding=1)
        inputs = (shape.stem, *shape.widths)
        self.down = nn.ModuleList(
            Level(
                inputs[i],
                width,
                shape.blocks,
                attends=shape.encoder_attention[i],
                fused=shape.fused,
            )
            for i, width in enumerate(shape.widths)
        )
        for level, width in zip(list(self.down)[:-1], shape.widths, strict=False):
            level.downsample = Resize(width, up=False)
        self.mid = Middle(shape.widths[-1], fused=shape.fused)
        self.norm_out = _norm(shape.widths[-1])
        self.conv_out = nn.Conv2d(shape.widths[-1], shape.latent_channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the latents."""
        h = self.conv_in(x_BCHW)
        for level in self.down:
            h = level(h)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(h))))
        return result


class Decoder(nn.Module):
    """Latents [B, latent channels, h, w] to images [B, 3, h * stride, w * stride]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(shape.latent_channels, shape.widths[-1], 3, padding=1)
        self.mid = Middle(shape.widths[-1], fused=shape.fused)
        inputs = (*shape.widths[1:], shape.widths[-1])
        self.up = nn.ModuleList(
            Level(
                inputs[i],
                width,
                shape.blocks + 1,
                attends=shape.decoder_attention[i],
                fused=shape.fused,
            )
            for i, width in enumerate(shape.widths)
        )
        for level, width in zip(list(self.up)[1:], shape.widths[1:], strict=True):
            level.upsample = Resize(width, up=True)
        self.norm_out = _norm(shape.widths[0])
        self.conv_out = nn.Conv2d(shape.widths[0], 3, 3, padding=1)

    def forward(self, z_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images, not clamped."""
        h = self.mid(self.conv_in(z_BChw))
        for level in reversed(list(self.up)):
            h = level(h)
        result: torch.Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return result


class Autoencoder(nn.Module):
    """Encoder and decoder with the convolutions next to the quantiser, which subclasses add."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        inner, outer, kernel = shape.code_channels, shape.latent_channels, shape.quant_kernel
        self.quant_conv = nn.Conv2d(outer, inner, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2)

    def to_latents(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return what is quantised, [B, code channels, h, w]."""
        latents: torch.Tensor = self.quant_conv(self.encoder(images_BCHW))
        return latents

    def to_images(self, codes_BChw: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H, W] of quantised latents."""
        images: torch.Tensor = self.decoder(self.post_quant_conv(codes_BChw))
        return images
