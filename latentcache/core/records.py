"""Frozen records that travel between the steps; they are validated at construction. No I/O.

Axes: B batch, T pixel frames, H W pixels, C latent channels; t h w of the latent. Ranges are half-open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from latentcache.errors import ConfigError
from latentcache.redaction import printable, redact

#: The largest weight of a clip: more would be a mistake, and epochs of it would never end.
MAX_WEIGHT = 1_000_000

FORMAT_VERSION = 1

ShardFormat = Literal["zarr", "parquet"]

#: Why a clip failed, in the words that a summary uses.
REASONS: Mapping[str, str] = {
    "missing": "the file is not there",
    "unreadable": "no decoder can open the file",
    "no_video": "the file has no video stream or no frames",
    "no_timestamps": "the file does not say when its frames are shown",
    "too_large": "a frame has more pixels than corpus.max_pixels allows",
    "truncated": "the stream ends before the clip does",
    "corrupt": "the decoder met damaged data",
    "size_changed": "the frames' size, turn or shape of pixels changes within the clip",
    "too_short": "the source has fewer frames than the shortest clip that the config asks for",
    "too_slow": "the source has fewer frames per second than clips.fps, and clips.too_slow is record",
    "too_small": "the source is smaller than its bucket, and clips.too_small is record",
    "illegal_frames": "the encoder cannot take a single frame, and this is an image",
    "source_changed": "the file is not the one that was planned",
    "decode_timeout": "decoding took longer than run.decode_timeout_s",
    "out_of_memory": "decoding needs more memory than run.decode_memory_bytes allows",
    "decoder_crashed": "the decoding process died",
    "non_finite": "the encoder returned NaN or infinity",
    "no_caption": "the clip has no text",
    "image_mark": "the text holds the words that stand for an image in the field's model",
    "missing_input": "the clip has no value in the column that the field reads",
    "no_sound": "the source has no sound, or none while the clip is shown",
    "input_too_short": "the file in the field's column ends before the clip does",
    "other_shape": "the file in the field's column has another aspect ratio than the clip's source",
    "other_array": "the array in the field's file has another shape, or numbers that its dtype cannot hold",
    "per_frame": "a column of corpus.per_frame has not one value per frame of the source",
    "frame_times": "the clip's frames are not those that values per frame were cut to",
    "retired": "the clip was replaced or removed before it was encoded",
    "not_copied": "the field had no sound value of the clip that could be copied",
    "shard_failed": "the whole shard failed more often than run.max_retries allows",
}
#: Failures of a field's clips that would come again: nothing is there to encode, or nobody wants it.
LASTING = ("no_caption", "missing_input", "no_sound", "retired")


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """Pixel shape T x H x W; all clips of a bucket give latents of one shape."""

    frames: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """`TxHxW`, the folder name in a cache."""
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, name: str) -> Bucket:
        """Read a name such as `81x480x832`; raises ConfigError."""
        parts = name.split("x")
        if len(parts) != 3 or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
            raise ConfigError(f"{name!r} is not a bucket; buckets are named FRAMESxHEIGHTxWIDTH")
        return cls(frames=int(parts[0]), height=int(parts[1]), width=int(parts[2]))


#: The kept column of what the corpus says about single frames of a source.
PER_FRAME = "per_frame"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One sample to make: `frames` sampled frames of a source, starting at sampled frame `start`.

    source: the name of the source in the corpus; url: where it is; identity: the digest of its content.
    fps: sampling rate; None samples every frame. height, width: the bucket's, to which it is cropped.
    keep: its values per frame, by which decoding is checked; other kept columns are its shard's.
    """

    key: str
    source: str
    url: str
    kind: Literal["video", "image"]
    identity: str
    start: int
    frames: int
    fps: float | None
    height: int
    width: int
    caption: str | None = None
    keep: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts_frames(self) -> bool:
        """Tell whether something of it is about frames of its source by their numbers."""
        return bool(self.keep.get(PER_FRAME))


class ShardId(NamedTuple):
    """Where a shard is: the name of its bucket, and its number in it."""

    bucket: str
    number: int

    @property
    def name(self) -> str:
        """`bucket/index`, for messages."""
        return f"{self.bucket}/{self.number}"


@dataclass(frozen=True, kw_only=True, order=True)
class ClipId:
    """Where a clip is in its cache. row: its row in the shard; failed clips count too."""

    shard: ShardId
    row: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The unit of work and of commit: the clips of rows 0..n of one storage object.

    retired: rows that no longer count, because a generation after the shard's own has replaced them; they
    are not encoded. kept: the columns that its clips keep from the corpus, as Arrow's table of a row per
    clip; None if there are none.
    """

    bucket: Bucket
    index: int
    clips: Sequence[Clip]
    retired: frozenset[int] = frozenset()
    kept: Any = None

    @property
    def id(self) -> ShardId:
        """The shard's address."""
        return ShardId(self.bucket.name, self.index)

    @property
    def name(self) -> str:
        """`bucket/index`, for messages."""
        return self.id.name


@dataclass(frozen=True, kw_only=True)
class ChunkRef:
    """Where the bytes of row `row` are in its shard object, and the CRC32C (Castagnoli) of them."""

    row: int
    offset: int
    length: int
    crc32c: int


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What the pictures of a clip's source are, and how they became the bucket's.

    display_height, display_width: as shown, in square pixels. transfer: SDR, PQ or HLG. The picture was
    resized to resized_height x resized_width, and the bucket was cut out of it at crop_top, crop_left.
    """

    source_fps: float | None
    display_height: int
    display_width: int
    interlaced: bool
    transfer: str
    resized_height: int
    resized_width: int
    crop_top: int
    crop_left: int


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What became of a clip. `reason` is None if it is ok.

    tiling_error: for clips that were also encoded untiled; see `encoders.tiled.tiling_error`. psnr: for
    clips that were also decoded, in dB against the pixels that were encoded; see `quality_gate`. drift:
    for clips of a round trip; see `core.drift`.
    """

    reason: str | None = None
    message: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    source_height: int | None = None
    source_width: int | None = None
    picture: PictureFacts | None = None
    decoder: str | None = None
    tiling_error: float | None = None
    psnr: float | None = None
    drift: float | None = None
    decode_s: float = 0.0
    fetch_s: float = 0.0
    encode_s: float = 0.0

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            raise ConfigError(f"unknown reason {self.reason!r}")
        if (
            self.message is not None
        ):  # it is stored and shown; a shard's may be any exception's text
            object.__setattr__(self, "message", printable(redact(self.message)))

    @property
    def ok(self) -> bool:
        """Whether the clip's latent is stored."""
        return self.reason is None


#: Of a row that a later generation retired before its latent was stored.
RETIRED = ClipResult(
    reason="retired", message="a later generation has replaced or removed the clip"
)


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a finished shard reports to its driver; it becomes a row of the snapshot.

    Times are seconds: decode_s is the sum over decoding processes, and so is fetch_s, for which they waited
    for remote sources; encode_s is the device's; wait_s and compare_s are those in which the encoder's
    thread waited for pixels, and decoded and compared a sample, while nothing was encoded; write_s is
    compression and upload. tiling_errors and psnrs_db: of the clips that have one. kernel_errors: of clips
    that were also encoded by themselves with plain kernels. committed_before: another run was faster, and
    nothing was written. fields: what became of the shard in fields that were made along with the latents,
    by their names. worker: the name of the worker that encoded it, empty if none could.
    """

    bucket: str
    shard: int
    num_clips: int
    num_ok: int
    num_frames: int
    stored_bytes: int
    table_bytes: int
    raw_bytes: int
    retired: Sequence[int] | None = None
    columns: str | None = None
    committed_before: bool = False
    reasons: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[tuple[str, str, str]] = ()
    tiling_errors: Sequence[float] = ()
    psnrs_db: Sequence[float] = ()
    kernel_errors: Sequence[float] = ()
    decode_s: float = 0.0
    fetch_s: float = 0.0
    encode_s: float = 0.0
    compare_s: float = 0.0
    wait_s: float = 0.0
    write_s: float = 0.0
    fields: Mapping[str, ShardReport] = field(default_factory=dict)
    worker: str = ""
