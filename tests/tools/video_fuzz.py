"""Random damage to videos of many kinds, through both decoders, in real decoding processes.

`python -m tests.tools.bad_videos --seed 1 --minutes 5` counts what comes out. A clip that is ok is compared
with the frames that the undamaged video shows at the same times.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from latentcache.decoders import pool as decode_pool
from latentcache.decoders.frames import Frame
from latentcache.decoders.index import read_index
from latentcache.errors import ClipError
from tests.decoders.test_pool import make_clip
from tests.tools.bad_videos import FRONT, OPEN_GOP, encode
from tests.tools.videos import read_with_pyav

CLIP_FRAMES = 5
TIMEOUT_S = 10.0
#: Past its limit a clip is killed, asked again without decord, and killed again.
PATIENCE_S = 4 * TIMEOUT_S
GOP = {"g": "10"}
VIDEOS: dict[str, Callable[[Path], Path]] = {
    "front.mp4": lambda p: encode(p, options=GOP, frames=40, container=FRONT),
    "back.mp4": lambda p: encode(p, options=GOP, frames=40),
    "open.mp4": lambda p: encode(p, options=OPEN_GOP, frames=40),
    "v.mkv": lambda p: encode(p, options=GOP, frames=40),
    "hevc.mkv": lambda p: encode(p, "libx265", {"x265-params": "log-level=none"}, frames=40),
    "vp8.webm": lambda p: encode(p, "libvpx", GOP, frames=40),
    "vp9.webm": lambda p: encode(p, "libvpx-vp9", GOP, frames=40),
    "av1.mkv": lambda p: encode(p, "libsvtav1", {"preset": "12", "g": "10"}, frames=40),
    "v.ts": lambda p: encode(p, options=GOP, frames=40),
    "v.flv": lambda p: encode(p, options=GOP, frames=40),
    "v.avi": lambda p: encode(p, "mpeg4", {"bf": "2", **GOP}, frames=40),
    "v.mpg": lambda p: encode(p, "mpeg2video", {"bf": "2", **GOP}, frames=40),
    "v.wmv": lambda p: encode(p, "wmv2", GOP, frames=40),
    "v.gif": lambda p: encode(p, "gif", pix_fmt="rgb8", frames=20),
}


def flip_bits(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 3, 30))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def flip_head(data: bytearray, draw: random.Random) -> bytearray:
    """Damage what the container says, at either end of the file."""
    for _ in range(draw.choice((1, 4))):
        at = draw.randrange(min(len(data), 1500))
        data[at if draw.random() < 0.5 else -1 - at] = draw.randrange(256)
    return data


def cut_off(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def cut_out(data: bytearray, draw: random.Random) -> bytearray:
    at = draw.randrange(len(data))
    del data[at : at + draw.randrange(1, 3000)]
    return data


def fill(data: bytearray, draw: random.Random) -> bytearray:
    at, length = draw.randrange(len(data)), draw.randrange(1, 3000)
    data[at : at + length] = draw.choice((bytes(length), draw.randbytes(length)))
    return data


WHOLE = "the frames of the whole video"
MOVED = "frames of the whole video, at other times"
SCATTERED = "frames of the whole video, not in a row"
CONCEALED = "damage that the stream does not show"
DAMAGES = (flip_bits, flip_head, cut_off, cut_out, fill)


class Fuzz:
    """Damages videos and counts outcomes by damage; the same seed gives the same damage."""

    def __init__(
        self, folder: Path, seed: int, pool: decode_pool.DecodePool, names: Sequence[str]
    ) -> None:
        self._folder = folder
        self._draw = random.Random(seed)
        self._pool = pool
        self.counts: Counter[tuple[str, str]] = Counter()
        self.num_files = 0
        self._whole = {name: self._make(name, VIDEOS[name]) for name in names}

    def _make(self, name: str, make: Callable[[Path], Path]) -> tuple[bytes, np.ndarray, Frame]:
        path = make(self._folder / f"whole_{name}")
        return path.read_bytes(), read_index(str(path)).times_s, read_with_pyav(path)

    def step(self) -> None:
        """Damage one video, and decode every clip of it."""
        name, damage = self._draw.choice(list(self._whole)), self._draw.choice(DAMAGES)
        path = self._folder / f"{self.num_files}_{name}"
        path.write_bytes(damage(bytearray(self._whole[name][0]), self._draw))
        for outcome in self._outcomes(path, name):
            self.counts[damage.__name__, outcome] += 1
        path.unlink()
        self.num_files += 1

    def _outcomes(self, path: Path, name: str) -> Iterator[str]:
        try:
            info = self._pool.probe(str(path), "video").result(PATIENCE_S)
        except ClipError as error:
            yield f"rejected: {error.reason}"
            return
        starts = list(range(0, info["frames"] - CLIP_FRAMES + 1, CLIP_FRAMES))[:20]
        if self._draw.random() < 0.5:
            starts.reverse()  # seek for each
        for start in starts:
            yield self._decode(path, name, start, (info["height"], info["width"]))

    def _decode(self, path: Path, name: str, start: int, size: tuple[int, int]) -> str:
        try:
            clip = make_clip(path, (CLIP_FRAMES, *size), start=start)
            decoded = self._pool.decode(clip).result(PATIENCE_S)
        except ClipError as error:
            return f"failed: {error.reason}"
        pixels, start_s = decoded.pixels.copy(), decoded.start_s
        decoded.release()
        return f"ok: {self._compare(name, pixels, start_s)}"

    def _compare(self, name: str, pixels: Frame, start_s: float) -> str:
        _, times_s, frames = self._whole[name]
        if pixels.shape[1:] != frames.shape[1:]:
            return "of another size"
        first = int(np.abs(times_s - start_s).argmin())
        if np.array_equal(pixels, frames[first : first + CLIP_FRAMES]):
            return WHOLE
        at = [[i for i, known in enumerate(frames) if np.array_equal(known, one)] for one in pixels]
        if not all(at):
            return CONCEALED
        together = any(all(k + j in places for j, places in enumerate(at)) for k in at[0])
        return MOVED if together else SCATTERED


def main() -> None:
    """Damage videos for as long as asked, and print what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes
    with (
        tempfile.TemporaryDirectory() as folder,
        decode_pool.DecodePool(
            num_processes=2,
            num_buffers=3,
            timeout_s=TIMEOUT_S,
            max_pixels=1 << 26,
            memory_bytes=4 << 30,
        ) as pool,
    ):
        fuzz = Fuzz(Path(folder), args.seed, pool, list(VIDEOS))
        while time.monotonic() < ends:
            fuzz.step()
    print(f"{fuzz.num_files} files, seed {args.seed}")
    for (damage, outcome), count in sorted(fuzz.counts.items()):
        print(f"{count:>8}  {damage:<10} {outcome}")


if __name__ == "__main__":
    main()
