"""The quality gate: as a run goes, a sample of its clips is decoded and compared with the pixels encoded.

A wrong pixel range, colour order or model shows up in a worker's first clips, not after a week. The
encoder's thread calls it with what was just encoded; it changes no latent.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentcache.config.sections import QualityConfig
from latentcache.core import image_quality
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import decode_stored
from latentcache.errors import RunStoppedError
from latentcache.redaction import printable

log = logging.getLogger(__name__)

#: Where no min_psnr is set, a warning is logged below this: trained autoencoders give 25 to 45 dB, and
#: discrete ones 20 or more.
WARN_PSNR_DB = 20.0
#: Clips that are looked at together, the latest ones: what goes wrong later, such as a GPU, shows too.
LATEST = 15
#: By how much nearer to its source a clip must be with red and blue swapped: grey ones are as near.
SWAP_MARGIN_DB = 1.0
#: From this correlation on, decoded and source are the same picture, perhaps in other contrast.
SAME_PICTURE = 0.8
#: How far contrast (as a factor) and brightness (of 255) of the same picture may be off unnamed.
CONTRAST, BRIGHTNESS = 0.2, 16.0
#: Every so many rows and columns are enough to fit contrast and brightness.
FIT_STEP = 4


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a decoded clip differs from its source.

    swapped_db: PSNR with red and blue swapped. gain, brightness: of the decoded values, fitted as
    gain x (source - its mean) + its mean + brightness; nan where one of the two is a single colour.
    """

    key: str
    psnr_db: float
    swapped_db: float
    gain: float
    brightness: float
    correlation: float

    @property
    def is_swapped(self) -> bool:
        """Whether red and blue are swapped."""
        return self.swapped_db > self.psnr_db + SWAP_MARGIN_DB


def compare(key: str, decoded_THWC: torch.Tensor, source_THWC: torch.Tensor) -> Comparison:
    """Compare uint8 clips [T, H, W, 3]; of a source with more frames the first ones."""
    source = source_THWC[: len(decoded_THWC)]
    x, y = (clip[:, ::FIT_STEP, ::FIT_STEP].double().flatten() for clip in (source, decoded_THWC))
    (var_x, cov), (_, var_y) = torch.cov(torch.stack([x, y]), correction=0).tolist()
    return Comparison(
        key=key,
        psnr_db=image_quality.psnr_db(float(image_quality.mse(decoded_THWC, source).mean())),
        swapped_db=image_quality.psnr_db(
            float(image_quality.mse(decoded_THWC.flip(-1), source).mean())
        ),
        gain=cov / var_x if var_x else math.nan,
        brightness=float(y.mean() - x.mean()),
        correlation=cov / math.sqrt(var_x * var_y) if var_x and var_y else math.nan,
    )


def find_problem(latest: Sequence[Comparison], min_psnr_db: float) -> str | None:
    """Say what is wrong with the median of the latest clips, in lines; None where nothing is."""
    ordered = sorted(latest, key=lambda comparison: comparison.psnr_db)
    median = ordered[(len(ordered) - 1) // 2]
    if median.psnr_db >= min_psnr_db and not median.is_swapped:
        return None
    return (
        f"decoded, the latest {len(latest)} clips that were compared have a PSNR of "
        f"{median.psnr_db:.1f} dB against their sources (median; {ordered[0].psnr_db:.1f} to "
        f"{ordered[-1].psnr_db:.1f}), where {min_psnr_db:g} dB or more is expected.\n"
        f"  {printable(median.key)}: {_explain(median)}"
    )


def _explain(clip: Comparison) -> str:
    """Say how a clip differs, and what usually causes that."""
    if clip.is_swapped:
        return (
            f"red and blue are swapped (with them swapped back it has {clip.swapped_db:.1f} dB): the "
            "encoder takes BGR for RGB"
        )
    if clip.correlation <= -SAME_PICTURE:
        return "it is a negative of its source: the pixel range is upside down"
    if clip.correlation < SAME_PICTURE or math.isnan(clip.correlation):
        return (
            "it hardly resembles its source. Usual causes: weights of another model or random ones, "
            "latents that are scaled by the normaliser already, or a dtype that overflows"
        )
    if abs(clip.gain - 1) > CONTRAST or abs(clip.brightness) > BRIGHTNESS:
        return (
            f"it is the same picture with {clip.gain:.2f} x the contrast and {clip.brightness:+.0f} of 255 "
            "in brightness. Usual causes: pixels in another range than the model's ([0, 1] for [-1, 1]), "
            "or latents that are scaled by the normaliser already"
        )
    return (
        "it is the same picture, only less exact. Usual causes: an encoder that compresses much, or "
        "sources full of noise"
    )


class Gate:
    """One worker's. num_compared: the clips for which it was tried; busy_s: what that took.

    The caller adds to busy_s, because only it knows how much of it a GPU was still encoding.
    A clip that cannot be decoded is only not compared: there is a warning, once a cause.
    """

    def __init__(self, encoder: Encoder, config: QualityConfig) -> None:
        self._encoder = encoder
        self._config = config
        self._latest: deque[Comparison] = deque(maxlen=LATEST)
        self._can_decode = config.every > 0
        self._has_warned = False
        self._verdict: str | None = None
        self.num_compared = 0
        self.busy_s = 0.0

    def look(self, row: Array, pixels_THWC: torch.Tensor, *, key: str, number: int) -> float | None:
        """Compare a clip if it is one of the sample; its PSNR in dB if that is to be recorded.

        row: the latents as they are stored. number: of the clip in its bucket. Recorded are those whose
        number is a multiple of `every`, so that two runs agree; the first clips of a worker are compared
        as well, only for the verdict. Raises RunStoppedError where too low a quality is not allowed, and
        from then on for every clip.
        """
        if self._verdict is not None:
            raise RunStoppedError(self._verdict)
        is_recorded = self._can_decode and number % self._config.every == 0
        is_first = self._can_decode and self.num_compared < self._config.judged_clips
        if not is_recorded and not is_first:
            return None
        comparison = self._compare(row, pixels_THWC, key)
        self.num_compared += 1
        if comparison is None:
            return None
        self._latest.append(comparison)
        self._judge()
        # Rounded: decoders need not be deterministic to the last bit.
        return round(comparison.psnr_db, 2) if is_recorded else None

    def _compare(self, row: Array, pixels_THWC: torch.Tensor, key: str) -> Comparison | None:
        spec = self._encoder.spec
        latents = torch.empty(row.shape, dtype=torch_dtype(spec.dtype))
        as_numpy(latents)[...] = row
        try:
            return compare(key, decode_stored(self._encoder, latents, spec.stored), pixels_THWC)
        except torch.OutOfMemoryError:
            frames, height, width, _ = pixels_THWC.shape
            log.warning(
                "%s has no GPU memory to decode %d frames of %dx%d pixels, so clips of that size are not "
                "compared with their sources (column psnr)",
                spec.model_class,
                frames,
                height,
                width,
            )
        except Exception as error:  # noqa: BLE001 - whatever a decoder does, the latents are there
            self._can_decode = False
            lines = str(error).splitlines() or [""]
            log.warning(
                "%s cannot decode, so no clip is compared with its source (column psnr), and "
                "quality.min_psnr is not looked at: %s: %s",
                spec.model_class,
                type(error).__name__,
                lines[0],
            )
        torch.cuda.empty_cache()  # out here: the exception held what it had been given
        return None

    def _judge(self) -> None:
        """Raise or warn where the latest clips are too far from their sources."""
        if len(self._latest) < self._config.judged_clips:
            return
        limit = self._config.min_psnr
        problem = find_problem(self._latest, WARN_PSNR_DB if limit is None else limit)
        if problem is None:
            return
        spec = self._encoder.spec
        facts = f"  {spec.model_class} is fed pixels in {list(spec.pixel_range)}, RGB"
        if limit is not None:
            self._verdict = (
                f"{problem}\n{facts}\nquality.min_psnr is {limit:g}, so the run was stopped: latents that "
                "do not decode to their sources are most likely wrong.\nTo look at clips, resume with "
                "quality.min_psnr=null until a shard is committed, and run `latentcache preview` on the "
                "cache. If they are what you want, go on with quality.min_psnr=null or a lower one; else "
                "fix the encoder and begin another cache."
            )
            raise RunStoppedError(self._verdict)
        if not self._has_warned:
            self._has_warned = True
            advice = "  Look at clips with `latentcache preview`; quality.min_psnr stops such a run"
            for line in (
                *problem.splitlines(),
                facts,
                advice,
            ):  # what is shown is shown line by line
                log.warning("%s", line)
