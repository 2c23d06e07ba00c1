"""The worker of a text field: texts are encoded one by one, each once, while shards are written.

Threads take turns at the encoder, a shard each, so that little is lost if a run is killed. An error of one
text fails its clip; anything else its shard, as with latents.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from latentcache.config.caption_fields import TextField
from latentcache.core.dtypes import Array
from latentcache.core.fields import FieldArray
from latentcache.core.lru import Lru
from latentcache.core.records import RETIRED
from latentcache.core.spec import ITEM_BYTES
from latentcache.encoders.text import resolve
from latentcache.encoders.text.protocol import EncodedText
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.nulls import NULL, Null, create_nulls, has_nulls
from latentcache.planning.fields.describe import text_arrays
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.field_arrays import check_encoder, to_stored
from latentcache.running.part_worker import PartWorker
from latentcache.running.worker import WorkerSpec

#: Encodings that a worker keeps: equal texts are encoded once. Neighbours are often clips of one source.
KEPT_BYTES = 1 << 30
INPUT_SHA_DIGITS = 32


@dataclass(frozen=True)
class Stored:
    """An encoded text as it is stored; or why it is not."""

    arrays: Sequence[Array] = ()
    tokens: int = 0
    lost_tokens: int = 0
    error: ClipError | None = None


class TextWorker(PartWorker):
    """Encodes the texts of shards; thread-safe."""

    def __init__(
        self, spec: WorkerSpec, field: FieldManifest, settings: TextField, device: torch.device
    ) -> None:
        super().__init__(spec, field)
        self._settings = settings
        self._encoder = resolve.build(settings.encoder(), device)
        arrays = text_arrays(self._encoder.arrays, self._field.arrays[0].dtype)
        check_encoder(field, arrays, self._encoder.recipe())
        self._encoding = threading.Lock()
        sample_bytes = sum(
            math.prod(array.shape) * ITEM_BYTES[array.dtype] for array in self._field.arrays
        )
        self._kept: Lru[str, Stored] = Lru(max(1, KEPT_BYTES // sample_bytes))
        self.num_steps = 0
        self._make_nulls()

    def _make_nulls(self) -> None:
        """Encode what stands for a dropped text, unless another worker has."""
        if has_nulls(self._spec.storage, self._field):
            return
        named = {NULL: "", **self._settings.nulls}
        nulls = []
        for name, text in named.items():
            found = self._encode(text)
            message = str(found.error) if found.error else None
            nulls.append(
                Null(
                    name=name,
                    text=text,
                    tokens=found.tokens,
                    lost_tokens=found.lost_tokens,
                    arrays=found.arrays,
                    message=message,
                )
            )
        create_nulls(self._spec.storage, self._field, nulls)

    def make_part(self, shard: FieldShard, part: FieldPart) -> tuple[list[Sample], float]:
        """Encode the texts of a part's rows, while no other thread encodes."""
        samples: list[Sample] = []
        with self._encoding:
            started = time.perf_counter()
            for row, texts in zip(part.rows, part.texts, strict=True):
                samples += self._samples(shard, row, texts)
                self.clips_done += 1
                self.num_steps += 1
            return samples, time.perf_counter() - started

    def _samples(self, shard: FieldShard, row: int, texts: Sequence[str]) -> list[Sample]:
        key = shard.shard.clips[row].key
        if row in shard.shard.retired:
            nothing = Sample(key=key, row=row, choice=0)
            return [nothing.failed(str(RETIRED.reason), RETIRED.message)]
        if not texts:
            why = f"there is no text in {' or '.join(self._settings.text_columns)}"
            return [Sample(key=key, row=row, choice=0).failed("no_caption", why)]
        return [self._sample(key, row, choice, text) for choice, text in enumerate(texts)]

    def _sample(self, key: str, row: int, choice: int, text: str) -> Sample:
        sha = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:INPUT_SHA_DIGITS]
        found = self._kept.get_or_make(sha, lambda: self._encode(text))
        sample = Sample(key=key, row=row, choice=choice, input_sha=sha)
        if found.error is not None:
            return sample.failed(found.error.reason, str(found.error))
        return replace(
            sample, arrays=found.arrays, tokens=found.tokens, lost_tokens=found.lost_tokens
        )

    def _encode(self, text: str) -> Stored:
        """Encode one text by itself. Only the error of a clip is returned; others are raised."""
        self.num_steps += 1
        try:
            with torch.inference_mode():
                encoded = self._encoder.encode(text)
            return to_stored_text(encoded, self._encoder.arrays, self._field.arrays)
        except OF_CLIP as error:
            return Stored(error=ClipError(error.reason, str(error)))

    def close(self) -> None:
        """Nothing was started."""


def to_stored_text(
    encoded: EncodedText, names: Iterable[str], arrays: Sequence[FieldArray]
) -> Stored:
    """Return a text's arrays as they are stored. names: see `to_stored`.

    Raises ClipError if one is not finite, EncoderError.
    """
    stored, tokens = to_stored(encoded.arrays, names, arrays), int(encoded.tokens)
    if arrays[0].ragged and tokens != len(stored[0]):
        raise EncoderError(
            f"the text encoder counts {tokens} tokens and returned {len(stored[0])} states, so a mask "
            "would be wrong. A padded array is returned without its padding."
        )
    return Stored(stored, tokens, int(encoded.lost_tokens))
