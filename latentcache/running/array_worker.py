"""The worker of fields of arrays: a file of each clip is read, checked and stored, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from latentcache.config.fields import ArrayField
from latentcache.core.records import RETIRED
from latentcache.core.threads import DaemonPool
from latentcache.errors import ClipError, SourceError
from latentcache.format.fields.commit import Sample
from latentcache.format.fields.manifest import FieldManifest
from latentcache.planning.fields.planned import FieldPart, FieldShard
from latentcache.running.array_files import parse_array, to_field
from latentcache.running.failure_policy import OF_CLIP
from latentcache.running.part_worker import PartWorker
from latentcache.running.worker import WorkerSpec
from latentcache.storage.source_files import irregular, is_absent, open_source
from latentcache.storage.urls import redact_url, refused_scheme

#: Files that are read at once.
NUM_READERS = 8
#: Files of more are none of a clip's array.
MAX_FILE_BYTES = 1 << 30
INPUT_SHA_DIGITS = 32


class ArrayWorker(PartWorker):
    """Reads the arrays of shards; thread-safe."""

    def __init__(self, spec: WorkerSpec, field: FieldManifest, settings: ArrayField) -> None:
        super().__init__(spec, field)
        self._settings = settings
        self._reading = DaemonPool(NUM_READERS, name="read")

    def make_part(self, shard: FieldShard, part: FieldPart) -> tuple[list[Sample], float]:
        """Read the files of a part's rows; nothing is encoded."""
        reading = [
            self._reading.submit(self._sample, shard, row, texts)
            for row, texts in zip(part.rows, part.texts, strict=True)
        ]
        return [future.result() for future in reading], 0.0

    def _sample(self, shard: FieldShard, row: int, texts: Sequence[str]) -> Sample:
        sample = Sample(key=shard.shard.clips[row].key, row=row, choice=0)
        if row in shard.shard.retired:
            return sample.failed(str(RETIRED.reason), RETIRED.message)
        try:
            return self._read(sample, texts)
        except OF_CLIP as error:
            return sample.failed(error.reason, str(error))
        finally:
            self.clips_done += 1

    def _read(self, sample: Sample, texts: Sequence[str]) -> Sample:
        if not any(texts):  # an empty path is none
            raise ClipError("missing_input", f"there is no path in {self._settings.column}")
        (array,), url = self._field.arrays, texts[0]
        data = self._bytes(url)
        try:
            found = to_field(parse_array(data, url, self._settings.tensor), array)
        except ClipError as error:
            raise ClipError(error.reason, f"{redact_url(texts[0])}: {error}") from error
        sha = hashlib.sha256(data).hexdigest()[:INPUT_SHA_DIGITS]
        tokens = len(found) if array.padding else None
        return replace(sample, arrays=[found], tokens=tokens, input_sha=sha)

    def _bytes(self, url: str) -> bytes:
        """Read a file. Raises ClipError where it is not there, or too large, and SourceError."""
        corpus = self._spec.config.corpus
        if why := refused_scheme(url, corpus.schemes):
            raise ClipError("unreadable", f"{redact_url(url)} {why}")
        try:
            if what := irregular(url, corpus.storage_options):
                raise ClipError("unreadable", f"{redact_url(url)} is a {what}, and no file")
            with open_source(url, corpus.storage_options) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            if is_absent(url, corpus.storage_options):
                raise ClipError("missing", f"no such file: {redact_url(url)}") from error
            raise SourceError(
                f"{redact_url(url)} is not there, and neither is what should be beside it: the storage of "
                "the field's files may be gone. Nothing was recorded; resume when it is back."
            ) from error
        if len(data) > MAX_FILE_BYTES:
            raise ClipError("too_large", f"{redact_url(url)} has more than {MAX_FILE_BYTES} bytes")
        return data

    @property
    def num_steps(self) -> int:
        """See `Worker.num_steps`."""
        return self.clips_done

    def close(self) -> None:
        """Stop reading."""
        self._reading.close()
