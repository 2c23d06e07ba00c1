"""A source on this machine: fetched where it is remote or a part, identified by content, opened once."""

from __future__ import annotations

import contextlib
import posixpath
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from latentcache.decoders import decord, image, look, pyav
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.identity import identify, identify_url, local_path
from latentcache.decoders.index import PacketIndex, read_index
from latentcache.decoders.packets import PacketTable
from latentcache.decoders.ranged import NeedsWholeError, RangedPath, of_video, open_binary
from latentcache.decoders.rates import with_rate
from latentcache.decoders.temporary_copies import new_copy
from latentcache.decoders.trouble import machine_trouble, read_through
from latentcache.decoders.windows import Windows
from latentcache.errors import ClipError
from latentcache.storage.part_files import open_whole_or_part
from latentcache.storage.parts import part_of
from latentcache.storage.source_cache import CachedSource, NoRoomError, SourceCache, StaleError
from latentcache.storage.urls import redact_url, without_query

#: What a temporary file's name may end in; FFmpeg looks at it where a file's content says nothing.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")

#: What is fetched between two signs of life.
_PIECE_BYTES = 1 << 20
#: Smaller files are fetched whole: their ends, and a few pictures or a header, are most of them.
_SMALL_BYTES = {"video": 1 << 20, "image": 1 << 18}
#: A file that was changed so lately can change again within one tick of the clock that its times follow.
_YOUNG_NS = 2_000_000_000


class Reader(Protocol):
    """What decoders expose: presentation times in s, facts of the pictures, and frames by index."""

    name: str
    times_s: npt.NDArray[np.float64]
    end_s: float
    facts: VideoFacts

    @property
    def packets(self) -> PacketTable | None:
        """The packets of a video."""
        ...

    def frames(self, indices: npt.NDArray[np.int64]) -> Any:
        """Yield the frames [h, w, 3] uint8 at ascending indices, each distinct one once."""
        ...


class Source:
    """One source: a local file, one in the cache of sources, or a temporary copy that goes with `close`.

    on_fetch: called with True before and after each piece that is fetched, or read through, and with False
    when the cache has all that it was asked for. cache: None keeps nothing for other processes.
    by_ranges: only parts of a video are wanted, or an image's header. Raises ClipError where there is no
    such file, OSError and ProcessTroubleError where it cannot be read, or kept, StaleError where it was
    replaced meanwhile, NoRoomError where the cache has no room, or may_copy is False and no cache takes
    it, and NeedsWholeError where parts do not do: see `make_whole`.
    """

    def __init__(
        self,
        url: str,
        kind: str,
        options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        on_fetch: Callable[[bool], object] = lambda _: None,
        cache: SourceCache | None = None,
        by_ranges: bool = False,
        may_copy: bool = True,
    ) -> None:
        self.url = url
        self._options = options
        self._on_fetch = on_fetch
        self._cache = cache
        self._by_ranges = by_ranges
        self._may_copy = may_copy
        self._cached: CachedSource | None = None
        self._copied_s = 0.0
        self._kind = kind
        self._max_pixels = max_pixels
        self._closing = contextlib.ExitStack()
        self._reader: Reader | None = None
        self._windows: Windows | None = None
        self._read_stamp: tuple[int, ...] | None = None
        try:
            self.path = self._local_path(options)
            self._stamp = self._look()
            self.identity = self._identify()
        except BaseException:
            self.close()
            raise

    @property
    def is_ranged(self) -> bool:
        """Tell whether only parts of it are here, and others come when they are asked for."""
        return isinstance(self.path, RangedPath)

    @property
    def is_windowed(self) -> bool:
        """Tell whether only frames of some spans of time can be known of it, as it is here."""
        return isinstance(self.path, RangedPath) and self.path.is_matroska

    @property
    def fetch_s(self) -> float:
        """Seconds that fetching has taken."""
        return self._copied_s + (self._cached.fetch_s if self._cached else 0.0)

    def forget_failure(self) -> None:
        """Let a fetch that failed be tried again."""
        if self._cached is not None:
            self._cached.forget_failure()

    @property
    def failure(self) -> BaseException | None:
        """What a fetch has raised, which FFmpeg may have taken for the end of the file."""
        return self._cached.failure if self._cached else None

    def check_fetches(self) -> None:
        """Raise what a fetch has raised."""
        if self.failure is not None:
            raise self.failure

    def make_whole(self) -> None:
        """Fetch all of it. What a decoder says of a part says nothing."""
        if self._cached is not None and self.is_ranged:
            self._cached.ensure_all()
            self.path, self._reader = self._cached.path, None

    def _look(self) -> tuple[int, ...]:
        """Return what changes where the file is written or replaced."""
        stat = Path(self.path).stat()
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def _identify(self) -> str:
        with open_binary(self.path) as file:
            return identify(file)

    def is_as_opened(self) -> bool:
        """Tell whether the file has the content that it had when it was opened.

        Decoders open it again, each at its own time. Raises OSError.
        """
        if self._cached is not None:
            return self._is_current(self._cached)
        stamp = self._look()
        if stamp == self._stamp and time.time_ns() - max(stamp[-2:]) > _YOUNG_NS:
            return True
        is_same = self._identify() == self.identity
        self._stamp = stamp if is_same else self._stamp
        return is_same

    def _is_current(self, cached: CachedSource) -> bool:
        """Tell whether what was fetched piece by piece, which may go on, is still what is there."""
        try:
            cached.check()
        except StaleError:  # its storage may only have written the same again
            return identify_url(self.url, self._options) == self.identity
        return True

    def read_through(self) -> None:
        """Read all of the file, once: what a decoder says against it counts only then. Raises OSError."""
        self.make_whole()
        if self._read_stamp != self._stamp:
            read_through(self.path, lambda: self._on_fetch(True))
            self._read_stamp = self._stamp

    def _local_path(self, options: Mapping[str, Any] | None) -> str:
        path = local_path(self.url, options)
        if path is not None:
            return path
        part = part_of(self.url)
        suffix = (
            posixpath.splitext(without_query(self.url))[1] if part is None else f".{part.suffix}"
        )
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        kept = self._in_cache(suffix)
        if kept is None and not self._may_copy:
            raise NoRoomError
        return kept or self._copied(options, suffix)

    def _in_cache(self, suffix: str) -> str | None:
        """Return the path of the source in the cache, None where it cannot be there."""
        if self._cache is None:
            return None
        try:
            cached = self._cache.open(self.url, self._options, suffix, self._on_fetch)
            if cached is None:
                return None
            self._closing.callback(cached.close)
            self._cached = cached
            return self._whole_or_ranged(cached)
        except FileNotFoundError:
            raise ClipError("missing", f"no such file: {redact_url(self.url)}") from None

    def _whole_or_ranged(self, cached: CachedSource) -> str:
        parts_do = self._by_ranges and cached.size > _SMALL_BYTES[self._kind]
        if parts_do and not cached.is_whole:
            with contextlib.suppress(NeedsWholeError):
                return RangedPath(cached) if self._kind == "image" else of_video(cached)
        cached.ensure_all()
        return cached.path

    def _copied(self, options: Mapping[str, Any] | None, suffix: str) -> str:
        try:
            temporary = new_copy(suffix)
        except OSError as error:
            raise machine_trouble(error) from error
        self._closing.enter_context(temporary)
        started = time.monotonic()
        self._fetch(options, temporary)
        self._copied_s = time.monotonic() - started
        return str(temporary.name)

    def _fetch(self, options: Mapping[str, Any] | None, target: IO[bytes]) -> None:
        try:
            with open_whole_or_part(self.url, options) as remote:
                while piece := remote.read(_PIECE_BYTES):
                    _keep(target, piece)
                    self._on_fetch(True)
        except FileNotFoundError:
            raise ClipError("missing", f"no such file: {redact_url(self.url)}") from None

    def reader(
        self, without_decord: bool = False, span_s: tuple[float, float] | None = None
    ) -> Reader:
        """Open with decord where it is right, else with PyAV, once. Raises ClipError.

        span_s: between which times, since the first frame, frames are wanted by their times. It is what
        can be read of a Matroska file without the rest. Its reader knows of no other frames.
        """
        if isinstance(self.path, RangedPath) and self.is_windowed:
            return self._windowed(self.path, span_s)
        if self._reader is None or (without_decord and self._reader.name == decord.NAME):
            self._reader = self._open(without_decord)
        return self._reader

    def shown_shape(self) -> tuple[int, int]:
        """Return the height and width of an image: of one that is here, after a look at its pixels."""
        if self.is_ranged:
            return image.shown_shape(self.path, self._max_pixels)
        height, width = next(self.reader().frames(np.zeros(1, dtype=np.int64))).shape[:2]
        return int(height), int(width)

    def _windowed(self, path: RangedPath, span_s: tuple[float, float] | None) -> Reader:
        if span_s is None:
            raise NeedsWholeError
        if self._windows is None:
            self._windows = Windows(path, self._max_pixels)
        return pyav.Reader(path, self._windows.index(*span_s), self._max_pixels)

    def _open(self, without_decord: bool) -> Reader:
        if self._kind == "image":
            return image.Reader(self.path, self._max_pixels)
        try:
            index = self._index()
        except NeedsWholeError:
            self.make_whole()
            index = self._index()
        if index.suits_decord and not without_decord and not self.is_ranged:
            with contextlib.suppress(*decord.Error):  # PyAV says what is wrong, if anything is
                reader = decord.Reader(self.path, index)
                self._closing.callback(reader.close)
                return reader
        return pyav.Reader(self.path, index, self._max_pixels)

    def _index(self) -> PacketIndex:
        """Return the index; those that suit decord need no check, for the probe has looked."""
        index = read_index(self.path, self._max_pixels)
        if index.suits_decord:
            return with_rate(look.with_facts(self.path, index, self._max_pixels))
        return with_rate(look.checked(self.path, index, self._max_pixels)[0])

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        self._reader = None
        self._closing.close()


def _keep(file: IO[bytes], piece: bytes) -> None:
    """Write to the end of an unbuffered file. Raises ProcessTroubleError where its disk is full."""
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise machine_trouble(error) from error
