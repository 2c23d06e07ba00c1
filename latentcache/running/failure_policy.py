"""Tells whose failure an error is, when a run is hopeless, and what failures have in common. No I/O."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from latentcache.config.sections import RunConfig
from latentcache.core.records import REASONS, ShardReport
from latentcache.errors import (
    ClipError,
    ConfigError,
    MachineError,
    RunStoppedError,
    StorageError,
)

Row = Mapping[str, Any]
#: What an error costs: `clip`, one row of its shard; `shard`, an attempt at the shard; `worker`, the
#: process that met it; `stop`, the run.
Cost = Literal["clip", "shard", "worker", "stop"]

#: Errors of one clip, whose reason its row records.
OF_CLIP = (ClipError,)
#: Errors that no other shard would escape: of the cache's storage, where nothing can be committed; of the
#: sources' storage and of the machine, which say nothing of a clip (`decoders.trouble` tells them from what
#: a file's bytes say); and the quality gate's verdict.
OF_RUN = (StorageError, MachineError, RunStoppedError)

#: What CUDA, its libraries and ROCm say once a process can compute no more: after an illegal access, a
#: failed launch or a GPU that is gone, every later call of that process fails, whatever it is given. Memory
#: that is short, and calls that were refused for their arguments, leave the process as it was.
SICK = re.compile(
    r"((CUDA|HIP)( driver)? error|Triton Error \[(CUDA|HIP)\]): "
    r"(?!out of memory|invalid argument|invalid configuration argument|no kernel image"
    r"|CUBLAS_STATUS_(?!EXECUTION_FAILED|INTERNAL_ERROR))"
    r"|(CUBLAS|CUDNN)_STATUS_EXECUTION_FAILED"
)

#: While nothing is committed, every worker may fail or lose this many times what it can have in hand: it
#: may die once with all of it, and a shard that kills it may come first when each is tried alone.
ROUNDS = 2
#: The clips that are judged are the latest ones: so many times `judged_clips`. A shorter memory would take
#: one long damaged video for the end of the corpus; a longer one would go on for hours on what is lost.
WINDOW = 10
#: Shared by at least this part of the failed clips, and by at most half that part of the others, a fact
#: is worth naming.
SHARED = 0.9
#: Kinds of failure that are shown, with an example each.
NAMED = 3

#: What sources and clips can have in common; None where a row says nothing of it.
FACTS: Mapping[str, Callable[[Row], str | None]] = {
    "folder": lambda row: str(PurePosixPath(row["source"]).parent),
    "suffix": lambda row: PurePosixPath(row["source"]).suffix or None,
    "bucket": lambda row: row["bucket"],
    "decoder": lambda row: row["decoder"],
    "source size": lambda row: (
        f"{row['source_height']}x{row['source_width']}" if row["source_height"] else None
    ),
}


def classify(error: BaseException, *, starting: bool = False) -> Cost:
    """Tell what an error costs that a worker raised. Every runner and worker goes by this rule.

    Whatever is not known to be a clip's or the run's costs its shard: encoders are other people's code,
    and may raise anything, SystemExit included. A shard is tried again, and so is a worker's start, but
    for a wrong configuration, which the next start would find as wrong.

    An import that fails is the installation's fault, whoever imports: every clip would fail of it. A GPU
    that fails is the machine's, and says nothing of the shard.

    starting: raised while the worker was built.
    """
    if isinstance(error, ImportError):
        return "stop"
    if isinstance(error, OF_RUN) or (starting and isinstance(error, ConfigError)):
        return "stop"
    if _is_sick(error):
        return "worker"
    return "clip" if isinstance(error, OF_CLIP) and not starting else "shard"


def _is_sick(error: BaseException | None) -> bool:
    """Tell whether an error, or one that led to it, says that its process can compute no more."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        with suppress(Exception):  # an encoder's error may not be able to say what it is
            if SICK.search(str(error)):
                return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def unfit(error: str) -> str:
    """Return the message of a run that a sick process or GPU ends."""
    return (
        f"the GPU, or the process that computes on it, is of no use any more: {error}. So the run was "
        "stopped, and no shard is recorded as failed for it; what is committed stays. See the kernel's log "
        "(dmesg) for an Xid, and nvidia-smi -q. Then run the same command again: a new process may be well."
    )


def all_unfit(error: str) -> str:
    """Return the message of a run without a worker that is of use. error: what the last one did."""
    return (
        f"no worker is left that gets on, and new processes in their places did not help. Of the last one: "
        f"{error}. So the run was stopped, and no shard is recorded as failed for it; what is committed "
        "stays. See what the workers wait for: the storage, the GPU, or the encoder itself. Then run the "
        "same command again."
    )


@dataclass
class Judge:
    """Counts what becomes of a run's latest clips, and of its attempts at shards.

    latest: clips and failed clips of the latest shards; num_clips, num_failed: their sums.
    """

    config: RunConfig
    latest: deque[tuple[int, int]] = field(default_factory=deque)
    num_clips: int = 0
    num_failed: int = 0
    num_encoded_shards: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add_shard(self, report: ShardReport) -> None:
        """Count a shard that a worker has encoded."""
        self.num_encoded_shards += 1
        self.add_clips(report)

    def add_clips(self, report: ShardReport) -> None:
        """Count the clips of a shard, and forget the shards that are older than the window."""
        self._count(report.num_clips, report.num_clips - report.num_ok)
        self.latest.append((report.num_clips, report.num_clips - report.num_ok))
        while self.num_clips - self.latest[0][0] >= WINDOW * self.config.judged_clips:
            num_clips, num_failed = self.latest.popleft()
            self._count(-num_clips, -num_failed)

    def _count(self, num_clips: int, num_failed: int) -> None:
        self.num_clips += num_clips
        self.num_failed += num_failed

    def add_error(self, error: str) -> None:
        """Count a failed attempt at a whole shard."""
        self.errors[error] += 1

    def too_many_clips_fail(self) -> bool:
        """Tell whether more of the latest clips failed than the configuration allows."""
        allowed = self.config.max_failed_fraction * self.num_clips
        return self.num_clips >= self.config.judged_clips and self.num_failed > allowed

    def nothing_can_be_encoded(self, num_in_hand: int) -> bool:
        """Tell whether every attempt failed; num_in_hand: shards that all workers can have at once."""
        return self.errors.total() > ROUNDS * num_in_hand and not self.may_blame_shards()

    def may_blame_shards(self) -> bool:
        """Tell whether a shard that is given up is to be recorded: others work, or that is not asked."""
        return self.num_encoded_shards > 0 or self.config.max_failed_fraction == 1


def describe_clips(rows: Sequence[Row]) -> list[str]:
    """Say, a line each, how clips failed and what the failed ones share; rows of sample tables."""
    failed = [row for row in rows if row["status"] == "failed"]
    others = [row for row in rows if row["status"] != "failed"]
    reasons = Counter(row["reason"] for row in failed)
    lines = [
        f"  {count:>6} x {reason}: {REASONS[reason]}" for reason, count in reasons.most_common()
    ]
    examples = {_pattern(row): row for row in reversed(failed)}
    kinds = Counter(map(_pattern, failed))
    for kind, count in kinds.most_common(NAMED):
        row = examples[kind]
        lines.append(f"  {count:>6} x like {row['key']}: {row['message']}")
    return lines + [line for name in FACTS if (line := _shared(name, failed, others))]


def describe_errors(errors: Mapping[str, int]) -> list[str]:
    """Say, a line each, how whole shards failed."""
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for error, count in errors.items():
        kinds[_without_numbers(error)] += count
        examples.setdefault(_without_numbers(error), error)
    return [f"  {count:>6} x {examples[kind]}" for kind, count in kinds.most_common(NAMED)]


def _shared(name: str, failed: Sequence[Row], others: Sequence[Row]) -> str | None:
    """Return a line about the commonest value of a fact, where it tells failed clips from others."""
    values = Counter(map(FACTS[name], failed))
    del values[None]
    if not values:
        return None
    value, count = values.most_common(1)[0]
    same = sum(FACTS[name](row) == value for row in others)
    part = count / len(failed)
    if part < SHARED or (others and same / len(others) > part / 2):
        return None
    rest = f", and {same} of the {len(others)} others" if others else ""
    return f"  {name} {value}: {count} of the {len(failed)} that failed{rest}"


def _pattern(row: Row) -> tuple[str, str]:
    """Return reason and message, without what names the clip or counts in it."""
    message = (row["message"] or "").replace(row["key"], "").replace(row["source"], "")
    return row["reason"], _without_numbers(re.sub(r"\S*/\S*", "", message))


def _without_numbers(message: str) -> str:
    return re.sub(r"\d+", "", message)
