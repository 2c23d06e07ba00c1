"""What a shard's time on the encoder's thread went to. Pure: times of `time.perf_counter` in, seconds out.

A GPU encodes one batch while the thread waits for the pixels of the next, and compares clips after all that
it was given before. So the time in which a batch was encoded counts as encoding, whatever the thread did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

#: When something began and ended.
Span = tuple[float, float]


@dataclass(kw_only=True)
class RowTimes:
    """When the thread began with a row of an encoded batch, began to compare its clip, and was done.

    encoding_s: the row's share of its batch's encoding. gate: the part in which the quality gate compared.
    """

    encoding_s: float
    begins_s: float
    compares_s: float | None = None
    ends_s: float = 0.0
    gate: Span | None = None

    @property
    def compared(self) -> Span:
        """From where the clip was compared; empty if it was not."""
        return (self.ends_s if self.compares_s is None else self.compares_s), self.ends_s


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """What a shard's time went to; nothing counts twice. encode_s: by row; gate_s: of compare_s."""

    wait_s: float
    encode_s: Mapping[int, float]
    compare_s: float
    gate_s: float


@dataclass(kw_only=True)
class ShardTimes:
    """What happened when. encodings: of batches, in order; waits: for pixels; rows: by their numbers."""

    encodings: list[Span] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)
    rows: dict[int, RowTimes] = field(default_factory=dict)

    def seconds(self) -> Seconds:
        """Return what the time went to, once all batches are encoded."""
        rows = self.rows.values()
        worked_s = self._not_encoding([(row.begins_s, row.compared[0]) for row in rows])
        encoded_s = [row.encoding_s + s for row, s in zip(rows, worked_s, strict=True)]
        return Seconds(
            wait_s=sum(self._not_encoding(self.waits)),
            encode_s=dict(zip(self.rows, encoded_s, strict=True)),
            compare_s=sum(self._not_encoding([row.compared for row in rows])),
            gate_s=sum(self._not_encoding([row.gate for row in rows if row.gate])),
        )

    def _not_encoding(self, spans: Sequence[Span]) -> list[float]:
        """Return the seconds of each span in which nothing was encoded."""
        edges = np.maximum.accumulate(np.ravel(self.encodings or [(0.0, 0.0)]))
        gained = np.diff(edges, prepend=edges[:1])
        gained[::2] = 0  # from the end of one encoding to the beginning of the next
        times: npt.NDArray[np.float64] = np.reshape(np.asarray(spans, np.float64), (-1, 2))
        encoded = np.interp(times, edges, np.cumsum(gained))
        lasted, overlapped = np.diff(times, axis=1)[:, 0], np.diff(encoded, axis=1)[:, 0]
        return [float(s) for s in np.maximum(0, lasted - overlapped)]
