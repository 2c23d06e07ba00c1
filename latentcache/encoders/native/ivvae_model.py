"""The network of IV-VAE, for one frame group at a time: keyframe temporal compression, group convolution.

After "Improved Video VAE for Latent Video Diffusion Model" (Wu et al., CVPR 2025) and the published
checkpoints of ali-vilab/iv-vae, whose parameter names it uses. Axes: B batch, T frames of a group
(1 in a clip's first group, then 4, or 2 and 1 further down), H W rows and columns.

Channels are two halves. The keyframe half describes single frames: it is reduced in time by taking
every second one. The temporal half is reduced by convolution. Both are computed from both halves.
"""

# ruff: noqa: D102 - what `forward` does is said by its class

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - its common name
from torch import nn

#: Widths of the four stages, in multiples of `dim`, and which of the three resamplings halve time.
_WIDTHS = (1, 2, 4, 4)
_HALVES_TIME = (False, True, True)
#: From this stage of the encoder on, a group is one frame, and blocks are two-dimensional.
_LAST = len(_WIDTHS) - 1
#: Dilations of the pyramid at the encoder's end; 0 is its 1x1 convolution.
_DILATIONS = (0, 1, 3, 6, 9, 12)
_COLOURS = 3


@dataclass
class Carry:
    """What a group takes over from the group before it: the last frame of every group convolution.

    One per clip (or batch of clips) and direction; nothing is kept on the modules.
    """

    is_first: bool = True
    _last: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def exchange(self, module: nn.Module, group_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the frame that comes before the group, [B, C, 1, H, W]; keep the group's last one.

        Before the first group, which is one frame, that is the frame itself.
        """
        before = self._last.get(module, group_BCTHW[:, :, :1])
        self._last[module] = group_BCTHW[:, :, -1:].clone()  # a view would keep the whole group
        return before


def _by_frame(
    function: Callable[[torch.Tensor], torch.Tensor], x_BCTHW: torch.Tensor
) -> torch.Tensor:
    """Apply an image function to every frame."""
    frames = x_BCTHW.transpose(1, 2).flatten(0, 1)
    return torch.unflatten(function(frames), 0, (len(x_BCTHW), -1)).transpose(1, 2)


class GroupConv3d(nn.Conv3d):
    """3x3x3, over one group: the group before gives its last frame, the group after gives zeros.

    Inside the group every frame sees its neighbours, later ones too: groups are causal, frames not.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=(0, 1, 1))

    def of_group(self, x_BCTHW: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Return the convolved group, as many frames."""
        padded = torch.cat([carry.exchange(self, x_BCTHW), x_BCTHW], dim=2)
        out: torch.Tensor = self(F.pad(padded, (0, 0, 0, 0, 0, 1)))
        return out


class GroupConv(nn.Module):
    """From `channels` to two halves of `half`: the keyframe half by image, the temporal by group."""

    def __init__(self, channels: int, half: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, half, 3, padding=1)
        self.conv_3d = GroupConv3d(channels, half)

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        return torch.cat([_by_frame(self.conv_2d, x), self.conv_3d.of_group(x, carry)], dim=1)


class PointConv(nn.Module):
    """1x1 from `channels` to two halves of `half`, under the names of a `GroupConv`."""

    def __init__(self, channels: int, half: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, half, 1)
        self.conv_3d = nn.Conv3d(channels, half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([_by_frame(self.conv_2d, x), self.conv_3d(x)], dim=1)


class FrameConv(nn.Module):
    """A two-dimensional convolution of both halves together, frame by frame."""

    def __init__(self, channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, dilation=dilation)

    def forward(self, x: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:  # noqa: ARG002 - as GroupConv
        return _by_frame(self.conv, x)


class HalvesNorm(nn.Module):
    """Root-mean-square norm over the channels of each half on its own."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(2 * half, 1, 1, 1))
        self._scale = math.sqrt(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(torch.unflatten(x, 1, (2, -1)), dim=2).flatten(1, 2)
        return unit * self._scale * self.gamma


class ImageNorm(nn.Module):
    """Root-mean-square norm over the channels of images [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1))
        self._scale = math.sqrt(channels)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return F.normalize(x_NCHW, dim=1) * self._scale * self.gamma


class Residual(nn.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut; by group or, if `is_flat`, by image."""

    def __init__(self, half: int, out_half: int, *, is_flat: bool) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(  # numbered as if layers without parameters were counted
            {
                "0": HalvesNorm(half),
                "2": _conv(half, out_half, is_flat=is_flat),
                "3": HalvesNorm(out_half),
                "6": _conv(out_half, out_half, is_flat=is_flat),
            }
        )
        self.shortcut: nn.Module | None = None
        if half != out_half:
            self.shortcut = (
                FrameConv(2 * half, 2 * out_half, 1) if is_flat else PointConv(2 * half, out_half)
            )

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        h = self.residual["2"](F.silu(self.residual["0"](x)), carry)
        out: torch.Tensor = self.residual["6"](F.silu(self.residual["3"](h)), carry)
        return out + (x if self.shortcut is None else self.shortcut(x))


def _conv(half: int, out_half: int, *, is_flat: bool) -> nn.Module:
    return FrameConv(2 * half, 2 * out_half, 3) if is_flat else GroupConv(2 * half, out_half)


class ImageAttention(nn.Module):
    """Self-attention with one head over the positions of each image [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ImageNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(self.norm(x_NCHW)).flatten(2).transpose(1, 2).contiguous()
        query, key, value = qkv[:, None].chunk(3, dim=-1)  # [N, 1, H * W, C]
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(mixed[:, 0].transpose(1, 2).reshape(x_NCHW.shape))
        return projected + x_NCHW


class Attention(nn.Module):
    """Attention in each frame, for each half on its own."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.Attention_2d = ImageAttention(half)
        self.Attention_3d = ImageAttention(half)

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:  # noqa: ARG002 - as Residual
        keyframe, temporal = x.chunk(2, dim=1)
        mixed = [_by_frame(self.Attention_2d, keyframe), _by_frame(self.Attention_3d, temporal)]
        return torch.cat(mixed, dim=1)


class Down(nn.Module):
    """Halve height and width. Also halve time if `halves_time` and the group has more than one frame."""

    def __init__(self, half: int, *, halves_time: bool) -> None:
        super().__init__()
        self.resample_2d = nn.ModuleDict({"1": nn.Conv2d(half, half, 3, stride=2)})
        self.resample_3d = nn.ModuleDict({"1": nn.Conv2d(half, half, 3, stride=2)})
        self.time_conv: nn.Conv3d | None = None
        if halves_time:
            self.time_conv = nn.Conv3d(half, half, (2, 1, 1), stride=(2, 1, 1))

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        halves = zip(x.chunk(2, dim=1), (self.resample_2d, self.resample_3d), strict=True)
        keyframe, temporal = (
            _by_frame(convs["1"], F.pad(values, (0, 1, 0, 1))) for values, convs in halves
        )
        if self.time_conv is not None and not carry.is_first:
            keyframe, temporal = keyframe[:, :, ::2], self.time_conv(temporal)
        return torch.cat([keyframe, temporal], dim=1)


class Up(nn.Module):
    """Double height and width and halve channels; also double time, except in the first group."""

    def __init__(self, half: int, *, doubles_time: bool) -> None:
        super().__init__()
        self.resample_2d = nn.ModuleDict({"1": nn.Conv2d(half, half // 2, 3, padding=1)})
        self.resample_3d = nn.ModuleDict({"1": nn.Conv2d(half, half // 2, 3, padding=1)})
        self.time_conv: nn.Conv3d | None = None
        if doubles_time:
            self.time_conv = nn.Conv3d(half, 2 * half, 1)

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        keyframe, temporal = x.chunk(2, dim=1)
        if self.time_conv is not None and not carry.is_first:
            keyframe = keyframe.repeat_interleave(2, dim=2)
            twice = torch.unflatten(self.time_conv(temporal), 1, (2, -1))  # earlier, later frame
            temporal = twice.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        keyframe, temporal = (
            _by_frame(convs["1"], _by_frame(_double_size, values))
            for values, convs in ((keyframe, self.resample_2d), (temporal, self.resample_3d))
        )
        return torch.cat([keyframe, temporal], dim=1)


def _double_size(x_NCHW: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest-exact")


class Pyramid(nn.Module):
    """Convolutions of several dilations side by side, merged by a 1x1: the encoder's last layer."""

    def __init__(self, half: int, out_half: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            conv = FrameConv(2 * half, 2 * out_half, 3 if dilation else 1, max(1, dilation))
            self.add_module(f"PAC_{dilation}", conv)
        self.PAC_conv = FrameConv(2 * out_half * len(_DILATIONS), 2 * out_half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = [self.get_submodule(f"PAC_{dilation}")(x).chunk(2, dim=1) for dilation in _DILATIONS]
        merged: torch.Tensor = self.PAC_conv(
            torch.cat(list(itertools.chain(*zip(*outs, strict=True))), 1)
        )
        return merged


def _middle(half: int) -> nn.ModuleList:
    return nn.ModuleList(
        [Residual(half, half, is_flat=True), Attention(half), Residual(half, half, is_flat=True)]
    )


class GroupEncoder(nn.Module):
    """Pixels of a group [B, 3, T, H, W] to features [B, 2 z, 1, H / 8, W / 8]."""

    def __init__(self, dim: int, z: int) -> None:
        super().__init__()
        self.conv1 = GroupConv(_COLOURS, dim)
        layers: list[nn.Module] = []
        half = dim
        for stage, width in enumerate(_WIDTHS):
            for _ in range(2):
                layers.append(Residual(half, width * dim, is_flat=stage == _LAST))
                half = width * dim
                if stage == _LAST:
                    layers.append(Attention(half))
            if stage < _LAST:
                layers.append(Down(half, halves_time=_HALVES_TIME[stage]))
            if stage == _LAST - 1:
                layers.append(Attention(half))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(half)
        self.head = nn.ModuleDict({"0": HalvesNorm(half), "2": Pyramid(half, z)})

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        x = self.conv1(x, carry)
        for layer in itertools.chain(self.downsamples, self.middle):
            x = layer(x, carry)
        features: torch.Tensor = self.head["2"](F.silu(self.head["0"](x)))
        return features


class GroupDecoder(nn.Module):
    """Features [B, z, 1, h, w] to two versions of a group's pixels [B, 2 x 3, T, 8 h, 8 w]."""

    def __init__(self, dim: int, z: int) -> None:
        super().__init__()
        half = _WIDTHS[-1] * dim
        self.conv1 = FrameConv(z, 2 * half, 3)
        self.middle = _middle(half)
        layers: list[nn.Module] = []
        for stage in reversed(range(len(_WIDTHS))):
            for _ in range(3):
                layers.append(Residual(half, _WIDTHS[stage] * dim, is_flat=stage == _LAST))
                half = _WIDTHS[stage] * dim
                if stage == _LAST:
                    layers.append(Attention(half))
            if stage > 0:
                layers.append(Up(half, doubles_time=_HALVES_TIME[stage - 1]))
                half //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = nn.ModuleDict({"0": HalvesNorm(half), "2": GroupConv(2 * half, _COLOURS)})

    def forward(self, x: torch.Tensor, carry: Carry) -> torch.Tensor:
        x = self.conv1(x)
        for layer in itertools.chain(self.middle, self.upsamples):
            x = layer(x, carry)
        pixels: torch.Tensor = self.head["2"](F.silu(self.head["0"](x)), carry)
        return pixels


class IVVAE(nn.Module):
    """The autoencoder of `dim` channels at full size and `z` latent channels (an even number)."""

    def __init__(self, dim: int, z: int) -> None:
        super().__init__()
        self.encoder = GroupEncoder(dim, z)
        self.conv1 = PointConv(2 * z, z)
        self.conv2 = PointConv(z, z // 2)
        self.decoder = GroupDecoder(dim, z)

    def encode_group(self, pixels_BCTHW: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Return mean and log-variance [B, 2 z, 1, h, w]; T is 1 in the first group, then 4."""
        features = self.conv1(self.encoder(pixels_BCTHW, carry))
        carry.is_first = False
        keyframe_mean, keyframe_logvar, mean, logvar = features.chunk(4, dim=1)
        return torch.cat([keyframe_mean, mean, keyframe_logvar, logvar], dim=1)

    def decode_group(self, latent_BCThw: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Return pixels [B, 3, T, H, W] of one latent frame: T is 1 in the first group, then 4."""
        keyframe, temporal = self.decoder(self.conv2(latent_BCThw), carry).chunk(2, dim=1)
        carry.is_first = False
        return torch.cat([keyframe[:, :, :1], temporal[:, :, 1:]], dim=2)
