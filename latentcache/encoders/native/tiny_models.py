"""The networks of TAESD and TAEHV, under the parameter names of their published checkpoints.

By Ollin Boer Bohan: github.com/madebyollin/taesd and github.com/madebyollin/taehv. Parameter names are
the positions of layers in a sequence; layers that only change the order of values are not counted.
Axes: N frames of all clips of a batch, clip after clip.
"""

# ruff: noqa: D102 - what `forward` does is said by its class

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - its common name
from torch import nn

#: Channels between the layers of all encoders, at every size.
_WIDTH = 64
_COLOURS = 3


def _conv3(channels: int, out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, stride=stride, bias=bias)


def _conv1(channels: int, out: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=bias)


def _three_convs(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        _conv3(channels, out), nn.ReLU(), _conv3(out, out), nn.ReLU(), _conv3(out, out)
    )


class SoftClamp(nn.Module):
    """Squash latents to (-3, 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class ResidualBlock(nn.Module):
    """Three convolutions beside the input; if `has_pool`, with a normalised detour before them.

    The detour's group norm takes its statistics over the whole picture. So tiles of a picture are not
    encoded as the picture is.
    """

    def __init__(self, width: int, *, has_pool: bool = False) -> None:
        super().__init__()
        self.conv = _three_convs(width, width)
        self.pool: nn.Module | None = None
        if has_pool:
            wide = 4 * width
            self.pool = nn.Sequential(
                _conv1(width, wide), nn.GroupNorm(4, wide), nn.ReLU(), _conv1(wide, width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + x)


def taesd_encoder(channels: int, *, has_pool: bool) -> nn.Sequential:
    """Pictures [N, 3, H, W] in [0, 1] to latents [N, channels, H / 8, W / 8]."""
    layers: list[nn.Module] = [_conv3(_COLOURS, _WIDTH), ResidualBlock(_WIDTH)]
    for stage in range(3):
        layers.append(_conv3(_WIDTH, _WIDTH, stride=2, bias=False))
        layers += [ResidualBlock(_WIDTH, has_pool=has_pool and stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, _conv3(_WIDTH, channels))


def taesd_decoder(channels: int, *, has_pool: bool) -> nn.Sequential:
    """Latents to pictures, about [0, 1]: `taesd_encoder` the other way round."""
    layers: list[nn.Module] = [SoftClamp(), _conv3(channels, _WIDTH), nn.ReLU()]
    for stage in range(3):
        layers += [ResidualBlock(_WIDTH, has_pool=has_pool and stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv3(_WIDTH, _WIDTH, bias=False)]
    return nn.Sequential(*layers, ResidualBlock(_WIDTH), _conv3(_WIDTH, _COLOURS))


def taesana_encoder(channels: int) -> nn.Sequential:
    """Pictures [N, 3, H, W] in [0, 1] to latents [N, channels, H / 32, W / 32]."""
    half = _WIDTH // 2
    layers: list[nn.Module] = [_conv3(_COLOURS, half, stride=2), nn.ReLU()]
    layers += [_conv3(half, _WIDTH, stride=2), nn.ReLU(), ResidualBlock(_WIDTH)]
    for _ in range(3):
        layers.append(_conv3(_WIDTH, _WIDTH, stride=2, bias=False))
        layers += [ResidualBlock(_WIDTH) for _ in range(3)]
    return nn.Sequential(*layers, _conv3(_WIDTH, channels))


def taesana_decoder(channels: int) -> nn.Sequential:
    """Latents to pictures, about [0, 1]: five doublings."""
    widths = (256, 128, 64, 64, 64, 64)
    layers: list[nn.Module] = [SoftClamp(), _conv3(channels, widths[0]), nn.ReLU()]
    for width, narrower in itertools.pairwise(widths):
        layers += [ResidualBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv3(width, narrower, bias=False)]
    return nn.Sequential(*layers, ResidualBlock(widths[-1]), _conv3(widths[-1], _COLOURS))


@dataclass
class Memory:
    """What later frames need from earlier ones: the last input frame of every memory block.

    One per batch of clips and direction; nothing is kept on the modules.
    """

    batch: int
    _last: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def exchange(self, block: nn.Module, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return for every frame the one before it (zeros before the first); keep the last ones."""
        x_BTCHW = torch.unflatten(x_NCHW, 0, (self.batch, -1))
        newest = x_BTCHW[:, -1:].clone()  # a view would keep all frames
        before = self._last.get(block, torch.zeros_like(newest))
        self._last[block] = newest
        return torch.cat([before, x_BTCHW[:, :-1]], dim=1).flatten(0, 1)


class MemoryBlock(nn.Module):
    """Three convolutions of a frame and the one before it, beside the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _three_convs(2 * width, width)

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class WideMemoryBlock(nn.Module):
    """The memory block of the `super` decoders: 7x7 by channel, then mixed by 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        both = 2 * width
        self.conv = nn.Sequential(
            nn.Conv2d(both, both, 7, padding=3, groups=both, bias=False),
            _conv1(both, 4 * width, bias=True),
            nn.ReLU(),
            _conv1(4 * width, width),
        )

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.conv(torch.cat([x, before], dim=1))
        return mixed + x


class MergeFrames(nn.Module):
    """Every `factor` frames to one, by a 1x1 over their channels."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.conv = _conv1(factor * width, width)
        self._factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        merged: torch.Tensor = self.conv(torch.unflatten(x, 0, (-1, self._factor)).flatten(1, 2))
        return merged


class SplitFrame(nn.Module):
    """Every frame to `factor` frames, by a 1x1 to their channels."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.conv = _conv1(width, factor * width)
        self._factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(self.conv(x), 1, (self._factor, -1)).flatten(0, 1)


class FrameNetwork(nn.Sequential):
    """Layers over frames [N, C, H, W] of a batch of clips, some of which look at the frame before."""

    def run(self, x_NCHW: torch.Tensor, memory: Memory) -> torch.Tensor:
        """Return what the layers make of the next frames of every clip."""
        for layer in self:
            if isinstance(layer, MemoryBlock | WideMemoryBlock):
                x_NCHW = layer(x_NCHW, memory.exchange(layer, x_NCHW))
            else:
                x_NCHW = layer(x_NCHW)
        return x_NCHW


def taehv_encoder(channels: int, patch: int, times: tuple[int, int, int]) -> FrameNetwork:
    """Frames to latents, `patch` x `patch` pixels per position; `times`: frames merged at each stage."""
    layers: list[nn.Module] = [_conv3(_COLOURS * patch**2, _WIDTH), nn.ReLU()]
    for factor in times:
        layers += [MergeFrames(_WIDTH, factor), _conv3(_WIDTH, _WIDTH, stride=2, bias=False)]
        layers += [MemoryBlock(_WIDTH) for _ in range(3)]
    return FrameNetwork(*layers, _conv3(_WIDTH, channels))


def taehv_decoder(channels: int, patch: int, times: tuple[int, int, int]) -> FrameNetwork:
    """Latents to frames, `patch` x `patch` pixels per position; `times`: frames made at each stage."""
    widths = (256, 128, 64, 64)
    layers: list[nn.Module] = [SoftClamp(), _conv3(channels, widths[0]), nn.ReLU()]
    for width, narrower, factor in zip(widths[:-1], widths[1:], times, strict=True):
        layers += [MemoryBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), SplitFrame(width, factor)]
        layers.append(_conv3(width, narrower, bias=False))
    return FrameNetwork(*layers, nn.ReLU(), _conv3(widths[-1], _COLOURS * patch**2))


def taehv_super_decoder(channels: int, patch: int, times: tuple[int, int, int]) -> FrameNetwork:
    """Return the larger decoder of the `super` checkpoints; used like `taehv_decoder`."""
    widths = (512, 256, 128, 64)
    layers: list[nn.Module] = [_conv1(channels, widths[0])]
    for width, narrower, factor in zip(widths[:-1], widths[1:], times, strict=True):
        layers += [WideMemoryBlock(width) for _ in range(3)]
        layers += [_conv3(width, 4 * narrower), nn.ReLU(), nn.PixelShuffle(2)]
        layers.append(SplitFrame(narrower, factor))
    return FrameNetwork(*layers, _conv3(widths[-1], _COLOURS * patch**2))


class TAEHV(nn.Module):
    """An encoder and a decoder, under one file's names."""

    def __init__(self, encoder: FrameNetwork, decoder: FrameNetwork) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
