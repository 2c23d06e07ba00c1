"""What a run did, in numbers. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from latentcache.core.records import ShardReport

#: Failures that a summary keeps, for people to read; the sample tables have them all.
KEPT_FAILURES = 1000


@dataclass
class Summary:
    """What a run did. Times as in ShardReport, summed over shards.

    fields_s: of the encoder's thread, for fields that were made along with the latents.
    shards_elsewhere: those that another run on the same cache committed meanwhile.
    start_s: until the first worker was up; wall_s: from then to the end.
    """

    shards: int = 0
    shards_failed: int = 0
    shards_elsewhere: int = 0
    retries: int = 0
    workers: int = 0
    clips_ok: int = 0
    clips_failed: int = 0
    frames: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    compare_s: float = 0.0
    wait_s: float = 0.0
    write_s: float = 0.0
    fields_s: float = 0.0
    start_s: float = 0.0
    wall_s: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    shard_errors: dict[str, str] = field(default_factory=dict)
    tiling_errors: list[float] = field(default_factory=list)
    psnrs_db: list[float] = field(default_factory=list)
    kernel_errors: list[float] = field(default_factory=list)

    def add(self, report: ShardReport) -> None:
        """Count a shard that was encoded, here or by another run."""
        if report.committed_before:
            self.shards_elsewhere += 1
            return
        self.shards += 1
        self._add_clips(report)

    def add_given_up(self, name: str, error: str, report: ShardReport | None) -> None:
        """Count a shard that was given up. report: of the failed clips, unless there are rows of theirs."""
        self.shards_failed += 1
        self.shard_errors[name] = error
        if report is not None:
            self._add_clips(report)

    def _add_clips(self, report: ShardReport) -> None:
        self.clips_ok += report.num_ok
        self.clips_failed += report.num_clips - report.num_ok
        self.frames += report.num_frames
        self.stored_bytes += report.stored_bytes
        self.raw_bytes += report.raw_bytes
        self.fetch_s += report.fetch_s
        self.decode_s += report.decode_s
        self.encode_s += report.encode_s
        self.compare_s += report.compare_s
        self.wait_s += report.wait_s
        self.write_s += report.write_s
        self.fields_s += sum(of_field.encode_s for of_field in report.fields.values())
        self.reasons.update(report.reasons)
        self.failures.extend(report.failures[: KEPT_FAILURES - len(self.failures)])
        self.tiling_errors.extend(report.tiling_errors)
        self.psnrs_db.extend(report.psnrs_db)
        self.kernel_errors.extend(report.kernel_errors)
