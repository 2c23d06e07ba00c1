"""Long clips in bounded memory: frames come in groups, and latents are made as the model sees them.

An encoder with `stream` carries what passes from group to group in the call itself. Streamed latents equal
those of the whole clip bit for bit: the model is called with the same groups of frames as `encode` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeGuard

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders.checks import check_encoded
from latentcache.encoders.protocol import Encoder
from latentcache.errors import EncoderError


class StreamingEncoder(Encoder, Protocol):
    """An encoder that need not see a whole clip at once."""

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip of `frames` frames, given as uint8 groups [B, T, H, W, 3] of any sizes, in order.

        Yields what `encode` gives of the whole, in pieces along the latents' time, each as soon as the
        model gives it. Nothing is kept from one call to the next. Raises what `encode` raises; EncoderError
        unless the groups are so many frames.
        """
        ...


def can_stream(encoder: Encoder) -> TypeGuard[StreamingEncoder]:
    """Tell whether an encoder takes a clip in groups of frames."""
    return callable(getattr(encoder, "stream", None))


def regroup(
    groups: Iterable[torch.Tensor], frames: int, first: int, size: int, *, rest: bool = False
) -> Iterator[torch.Tensor]:
    """Yield the same frames as groups of `first`, then of `size`. [B, T, H, W, 3] in and out.

    rest: whether the last group may be smaller. A group that is given need only last until the next one is
    asked for; so do those that are yielded.

    Raises EncoderError unless there are `frames` of them.
    """
    held: list[torch.Tensor] = []
    num_held = num_given = 0
    wanted = first
    for group in groups:
        num_given += group.shape[1]
        while group.shape[1]:
            taken, group = group[:, : wanted - num_held], group[:, wanted - num_held :]
            held.append(taken)
            num_held += taken.shape[1]
            if num_held == wanted:
                yield torch.cat(held, dim=1) if len(held) > 1 else held[0]
                held, num_held, wanted = [], 0, size
        held[-1:] = [
            left.clone() for left in held[-1:]
        ]  # whoever gave the group may use its memory
    if num_given != frames or (held and not rest):
        raise EncoderError(f"a clip of {frames} frames was streamed as {num_given}")
    if held:
        yield torch.cat(held, dim=1) if len(held) > 1 else held[0]


def encode_stream(
    encoder: StreamingEncoder, groups: Iterable[torch.Tensor], shape: tuple[int, ...]
) -> torch.Tensor:
    """Return what `encode` gives of one clip, whose frames come in groups. shape: T, H, W of its pixels.

    Raises EncoderError, also if the GPU has no memory for a group.
    """
    spec = encoder.spec
    expected, size = spec.latent_shape(*shape), spec.latent_frames(shape[0])
    try:
        encoded = joined(encoder.stream(groups, shape[0]), size, _time_axis(spec))
    except torch.OutOfMemoryError as error:
        raise EncoderError(
            f"{spec.model_class} has no GPU memory for a group of frames of {shape[1]}x{shape[2]} pixels "
            f"({error}). Make clips smaller, set encoder.tiling, or use a larger GPU"
        ) from error
    if spec.ids is None:
        expected = (encoded.shape[1], *expected[1:])
    check_encoded(spec, encoded, (1, *expected))
    return encoded


def joined(pieces: Iterable[torch.Tensor], size: int, axis: int) -> torch.Tensor:
    """Return pieces behind one another along an axis, on which they are `size` in all.

    None is held twice: each is let go before the next one is asked for. Raises EncoderError if they are
    fewer or more.
    """
    whole, filled = None, 0
    for piece in pieces:
        num = piece.shape[axis]
        if whole is None:
            whole = piece if num == size else _room_for(piece, size, axis)
        if whole is not piece and filled + num <= size:
            whole.narrow(axis, filled, num).copy_(piece)
        filled += num
        del piece
    if whole is None or filled != size:
        raise EncoderError(f"a clip of {size} latent frames was encoded to {filled}")
    return whole


def _room_for(piece: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    shape = list(piece.shape)
    shape[axis] = size
    return piece.new_empty(shape)


def _time_axis(spec: LatentSpec) -> int:
    return 1 if spec.ids is not None else 2


def check_stream(
    spec: LatentSpec, groups: Iterable[torch.Tensor], frames: int
) -> Iterator[torch.Tensor]:
    """Yield the groups, each looked at first. Raises EncoderError, GeometryError as `check_pixels` does."""
    spec.check_frames(frames)
    for group in groups:
        shape = tuple(group.shape)
        if group.dtype != torch.uint8 or len(shape) != 5 or shape[-1] != 3:
            raise EncoderError(
                f"{spec.model_class} encodes uint8 pixels [B, T, H, W, 3], "
                f"not {group.dtype} {list(shape)}"
            )
        spec.check_size(*shape[2:4])
        yield group
