"""Whether a file was cut, and how many frames it had when whole, from what its header says."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import av

from latentcache.decoders.crops import MATROSKA, MP4
from latentcache.decoders.packets import PacketTable
from latentcache.errors import ClipError

AVI, MXF = "avi", "mxf"
#: An index spends at least so much of a file on a frame; a header that declares more frames is damaged.
MIN_FRAME_BYTES = 4
_MAX_RIFFS = 10_000
#: What a header partition begins with; other bytes may come before it.
_MXF_HEADER = bytes.fromhex("060e2b34020501010d0102010102")
_KEY_BYTES, _RUN_IN_BYTES = 16, 1 << 16


def num_missing(
    path: str, container: Any, stream: Any, packets: PacketTable, num_shown: int, found_s: float
) -> int:
    """Return how many of the frames that were there are cut off.

    Raises ClipError where the header declares more than there can have been.
    """
    missing = 0.0
    kind = container.format.name
    if kind == MP4:
        # Not the header's number: FFmpeg drops what an edit list leaves out, and repeats what it repeats
        missing = len(stream.index_entries) - len(packets) - packets.num_empty
        if missing > 0:  # FFmpeg's parser takes some of those that are empty
            num_empty = sum(entry.size == 0 for entry in stream.index_entries)
            missing -= max(0, num_empty - packets.num_empty)
    elif kind == AVI and is_cut_avi(path):
        # A chunk can be empty, or show nothing: what is missing is as dense as what is there
        slots = max(dts for dts in (-1, *packets.dts) if dts is not None) + 1
        missing = int(stream.frames) - max(slots, len(packets))
        missing *= num_shown / max(slots, len(packets))
    elif kind == MATROSKA and container.duration and is_cut_matroska(path):
        missing = num_shown * (container.duration / av.time_base / found_s - 1)
    elif kind == MXF and is_cut_mxf(path):
        missing = max(1, (stream.duration or 0) - len(packets))
    count = max(0, round(missing))
    if count * MIN_FRAME_BYTES > Path(path).stat().st_size:
        raise ClipError(
            "corrupt",
            f"the header declares {num_shown + count} frames, and the file has {num_shown}",
        )
    return count


def is_cut_matroska(path: str) -> bool:
    """Tell whether a Matroska file ends before its segment, whose size its header gives."""
    with Path(path).open("rb") as file:
        head = file.read(1 << 12)
        size = file.seek(0, 2)
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head):
        return False
    width = 9 - head[at + 4].bit_length()
    declared = int.from_bytes(head[at + 4 : at + 4 + width]) - (1 << 7 * width)
    is_known = declared != (1 << 7 * width) - 1
    return is_known and at + 4 + width + declared > size


def is_cut_mxf(path: str) -> bool:
    """Tell whether an MXF file ends before its footer, whose place the header gives if it was finished."""
    with Path(path).open("rb") as file:
        head = file.read(_RUN_IN_BYTES)
        size = file.seek(0, 2)
    at = head.find(_MXF_HEADER)
    if at < 0:
        return False
    at += _KEY_BYTES
    at += 1 + (head[at] & 0x7F if head[at] & 0x80 else 0)  # the length of the pack
    return int.from_bytes(head[at + 24 : at + 32]) >= size


def is_cut_avi(path: str) -> bool:
    """Tell whether an AVI ends before its RIFF chunks, or was never finished.

    The number of frames in its header does not tell: it counts those that were dropped, too.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        return any(end > size for end in _riff_ends(file, size))


def _riff_ends(file: IO[bytes], size: int) -> list[int]:
    """Return where the RIFF chunks of a file say that they end; an unfinished one never does."""
    ends: list[int] = []
    at = 0
    while at + 8 <= size and len(ends) < _MAX_RIFFS:
        file.seek(at)
        head = file.read(8)
        if head[:4] != b"RIFF":
            break
        length = int.from_bytes(head[4:], "little")
        at = at + 8 + length + length % 2 if length else size + 1
        ends.append(at - length % 2)
    return ends
