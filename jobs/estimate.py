"""Say what precompute would take: encode a few clips of every bucket, leave the cache alone, and scale."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import FieldConfig, parse_fields, path_columns
from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.devices import resolve_device
from latentcache.core.machine import num_cpus
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.core.units import human_bytes, human_time
from latentcache.corpus.sources import Corpus
from latentcache.errors import ConfigError
from latentcache.format.fields.taken import Texts
from latentcache.format.manifest import Manifest
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.fields.columns import taken_of
from latentcache.planning.fields.describe import describe_field
from latentcache.planning.plan import Plan
from latentcache.planning.planner import plan_corpus
from latentcache.planning.recipe import make_manifest, resolve_encoder
from latentcache.running.estimate import BucketEstimate, Estimate, measure
from latentcache.running.gpu_sharing import CONTEXT_BYTES, GpuNeed, workers_per_gpu
from latentcache.running.shards_in_hand import most_in_hand
from latentcache.running.trials import Trial, try_batches

from . import parsers
from .cli import OK, SOME_FAILED, run_job
from .field_plans import check_corpus, print_memory
from .waiting import Waiting

#: What to do about the stage that the others wait for.
ADVICE = {
    "decode": "decoding: more CPUs a worker (run.decode_processes is {processes}), or smaller sources; the "
    "encoder waits for pixels",
    "encode": "the encoder: more or faster GPUs, or another encoder.dtype; more decoding processes change "
    "nothing",
    "write": "writing: more CPUs, a lower cache.compression.level, or shorter shards (cache.shard_clips)",
}

#: Sources until probing goes at its own speed: as many are under way at once.
WARM_SOURCES = 512


def main() -> int:
    """Parse the command line and run."""
    return run_job(estimate, parsers.estimate())


def estimate(args: argparse.Namespace) -> int:
    """Plan, measure and print; returns the exit status."""
    if min(args.clips, args.gpus, args.sources) < 1 or (args.price or 0) < 0:
        raise ConfigError("--clips, --gpus and --sources are at least 1, and --price is at least 0")
    config = load_config(args.config, args.overrides)
    resolve_device(config.run.device, "run.device")  # before the corpus is probed
    spec, identity = resolve_encoder(config)
    fields = parse_fields(config.fields)
    with Waiting() as waiting:
        plan, known, scale = _plan(config, fields, spec, args.sources, waiting)
        found = measure(
            config, plan, spec, identity, num_clips=args.clips, scale=scale, on_step=waiting.say
        )
    _print_buckets(found)
    _print_totals(found, args.gpus, args.price)
    manifest = replace(make_manifest(config, spec, identity), shard_clips=found.shard_clips)
    _print_fields(fields, plan, known, manifest, scale)
    _print_limits(config, found)
    with Waiting() as waiting:
        waiting.say("encoding with other batches")
        names = [bucket.name for bucket in found.buckets]
        trials = try_batches(config, spec, names, shard_clips=found.shard_clips)
    _print_trials(trials)
    failed = sum(bucket.num_measured - bucket.num_ok for bucket in found.buckets)
    if failed:
        print(
            f"\n{failed} of the clips that were measured failed: precompute says why, a clip a row."
        )
    return SOME_FAILED if failed else OK


def _plan(
    config: Config,
    fields: Mapping[str, FieldConfig],
    spec: LatentSpec,
    max_sources: int,
    waiting: Waiting,
) -> tuple[Plan, pa.Schema, float]:
    """Plan some of a large corpus; returns its columns and how many times larger it is, too."""
    known = PLAN_SCHEMA
    num_sources = 0
    times_s: list[float] = []

    def start(corpus: Corpus) -> None:
        nonlocal num_sources, known
        waiting.stop()
        known = check_corpus(fields, config, corpus)
        num_sources = corpus.table.num_rows
        if num_sources > max_sources:
            print(
                f"corpus   {num_sources} sources; {max_sources} of them, drawn at random, are probed. "
                "Numbers of clips are\n         scaled; rare buckets may be missing.",
                flush=True,
            )
        times_s.append(time.perf_counter())
        waiting.say(f"probing {min(num_sources, max_sources)} sources")

    waiting.say("listing the corpus")
    plan = plan_corpus(
        config, spec, start, lambda: times_s.append(time.perf_counter()), max_sources=max_sources
    )
    waiting.stop()
    scale = max(1.0, num_sources / max_sources)
    if scale > 1:
        print(
            f"         To probe all takes about {human_time(_probe_s(times_s) * num_sources)} here.\n"
        )
    return plan, known, scale


def _probe_s(times_s: Sequence[float]) -> float:
    """Return the seconds a source, from when each was probed; first, processes have to start."""
    steady = times_s[WARM_SOURCES:] if len(times_s) > 2 * WARM_SOURCES else times_s
    return (steady[-1] - steady[0]) / (len(steady) - 1)


def _print_buckets(found: Estimate) -> None:
    stages = "".join(f"{stage:>10}" for stage in ("fetch", "decode", "encode", "write"))
    head = f"{'bucket':<16}{'clips':>10}{'measured':>10}{stages}"
    print(f"{head}{'a clip':>10}{'in all':>12}{'stored':>12}  limit")
    for bucket in found.buckets:
        times = "".join(
            f"{seconds:>8.3f} s"
            for seconds in (
                bucket.fetch_s,
                bucket.decode_s,
                bucket.encode_s,
                bucket.write_s,
                bucket.clip_s,
            )
        )
        print(
            f"{bucket.name:<16}{bucket.num_clips:>10}{bucket.num_measured:>10}{times}"
            f"{human_time(bucket.total_s):>12}{human_bytes(bucket.total_bytes):>12}  {bucket.limit}"
        )
    print(
        "Means of a clip: fetch and decode in one process, encode on the device, write in one\n"
        "thread; "
        "`a clip` is what the pipeline of all of them takes."
    )


def _print_totals(found: Estimate, gpus: int, price: float | None) -> None:
    wall_s, memory = found.wall_s(gpus), found.memory
    unit = "GPU" if memory.gpu_bytes is not None else "worker"
    hours = found.worker_hours(gpus)
    print(
        f"\ntime     {human_time(wall_s)} with {gpus} {unit}{'s' if gpus > 1 else ''}, after starting up"
    )
    print(
        f"start    {found.start_s:.1f} s a worker, to load the model; Ray itself takes a few more"
    )
    print(f"work     {hours:,.2f} {unit} hours" + _cost(hours, price))
    print(
        f"bytes    {human_bytes(found.stored_bytes)} stored, "
        f"{human_bytes(found.stored_bytes / wall_s)}/s to the cache's storage (not measured)"
    )
    print(
        f"quality  {found.compare_s:.2f} s a clip that is decoded and compared, too (in the time above)"
    )
    print(
        f"memory   {human_bytes(memory.worker_bytes)} a worker and {human_bytes(memory.decoder_bytes)} a "
        "decoding process at most"
    )
    if memory.gpu_bytes is not None and memory.gpu_total_bytes is not None:
        part = memory.gpu_bytes / memory.gpu_total_bytes
        print(
            f"gpu      {human_bytes(memory.gpu_bytes)} at most, {part:.0%} of "
            f"{human_bytes(memory.gpu_total_bytes)}; tensors {human_bytes(memory.gpu_tensor_bytes or 0)}"
        )
        taken = memory.gpu_bytes + CONTEXT_BYTES
        need = GpuNeed(free_bytes=memory.gpu_total_bytes, worker_bytes=taken)
        print(
            f"         {workers_per_gpu(need, num_cpus() / memory.num_gpus)} workers could share it "
            "(run.workers_per_gpu)"
        )


def _print_fields(
    fields: Mapping[str, FieldConfig],
    plan: Plan,
    known: pa.Schema,
    manifest: Manifest,
    scale: float,
) -> None:
    """Say how many texts fields encode, and what their arrays take; their encoders are not timed.

    known: the columns that clips have.
    """
    for name, field in fields.items():
        found, raw_bytes = describe_field(field, manifest), 0
        texts, choices = [], 1
        if isinstance(field, TextField | JointField):
            texts = _texts(plan, field, known)
            choices = field.max_choices or max(map(len, texts), default=0) or 1
        for bucket, table in plan.buckets.items():
            for array in found.arrays if field.kind != "view" else ():
                shape = array.shape_in(bucket, manifest.spec)
                raw_bytes += table.num_rows * choices * math.prod(shape) * ITEM_BYTES[array.dtype]
        different = ""
        if isinstance(field, TextField):
            num = len({text for row in texts for text in row})
            different = f", {num * scale:,.0f} different texts"
        print(
            f"field    {name}: {human_bytes(raw_bytes * scale)} at most, before compression and with all "
            f"padding{different} (not timed)"
        )
        if field.kind != "view":
            clips = {
                bucket: round(table.num_rows * scale) for bucket, table in plan.buckets.items()
            }
            print_memory(*most_in_hand(found.arrays, manifest, clips, choices))


def _texts(plan: Plan, field: TextField | JointField, known: pa.Schema) -> list[Texts]:
    """Return the texts of each clip, as many as the field takes. Raises ConfigError."""
    tables, num_paths = plan.buckets.values(), len(path_columns(field))
    rows = (row for table in tables for row in taken_of(field, table, known))
    return [row[num_paths:][: field.max_choices] for row in rows]


def _cost(hours: float, price: float | None) -> str:
    return "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"


def _print_limits(config: Config, found: Estimate) -> None:
    """Say what most of the time is waited for, and what would help."""
    busiest: BucketEstimate = max(found.buckets, key=lambda bucket: bucket.total_s)
    limited_s = dict.fromkeys(ADVICE, 0.0)
    for bucket in found.buckets:
        limited_s[bucket.limit] += bucket.total_s
    limit = max(limited_s, key=lambda stage: limited_s[stage])
    part = limited_s[limit] / max(sum(limited_s.values()), 1e-9)
    advice = ADVICE[limit].format(processes=busiest.num_processes)
    print(f"\n{part:.0%} of the time is limited by {advice}.")
    if found.device == "cpu":
        print("On CPUs all stages share the cores: a stage that gets cheaper speeds up the others.")
    elif "tiling" not in config.encoder:
        print(
            "Clips are encoded whole, one at a time: tiles would only take less memory, and be less exact."
        )


def _print_trials(trials: Sequence[Trial]) -> None:
    for setting in dict.fromkeys(trial.setting for trial in trials):
        print(f"\n{setting} (part of the recipe: set it before the first run)")
        _print_setting([trial for trial in trials if trial.setting == setting])


def _print_setting(trials: Sequence[Trial]) -> None:
    best: dict[str, float] = {}
    for trial in trials:
        if trial.clip_s is not None:
            best[trial.bucket] = min(trial.clip_s, best.get(trial.bucket, trial.clip_s))
    for trial in trials:
        name = "untiled" if trial.batch is None else f"batch {trial.batch}"
        if trial.clip_s is None:
            print(f"  {trial.bucket:<16}{name:<12}the GPU has no memory for it")
            continue
        peak = "" if trial.peak_bytes is None else f", {human_bytes(trial.peak_bytes)}"
        mark = "  <- fastest" if trial.clip_s == best[trial.bucket] else ""
        print(f"  {trial.bucket:<16}{name:<12}{trial.clip_s:.3f} s a clip{peak}{mark}")


if __name__ == "__main__":
    import sys

    sys.exit(main())
