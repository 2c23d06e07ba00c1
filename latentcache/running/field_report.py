"""What became of several versions of a field's shard, as one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from latentcache.core.records import ShardReport


def joined(reports: Sequence[ShardReport]) -> ShardReport:
    """Return what became of several versions of a shard."""
    if len(reports) == 1:
        return reports[0]
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
    sums = (
        "num_clips",
        "num_ok",
        "stored_bytes",
        "table_bytes",
        "raw_bytes",
        "encode_s",
        "write_s",
    )
    return replace(
        reports[0],
        **{name: sum(getattr(report, name) for report in reports) for name in sums},
        reasons=reasons,
        failures=[failure for report in reports for failure in report.failures],
        committed_before=all(report.committed_before for report in reports),
    )
