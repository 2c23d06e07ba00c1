"""From a configuration to a planned cache: a new one, or one that takes in what its corpus has now.

Everything a user can get wrong is found here, before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from latentcache.config.sections import Config
from latentcache.core.machine import num_cpus
from latentcache.core.records import REASONS
from latentcache.core.spec import LatentSpec
from latentcache.corpus.cached import ParentProbes
from latentcache.corpus.probe import Prober, probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.sources import Corpus, read_corpus
from latentcache.decoders.pool import DecodePool
from latentcache.errors import (
    CorpusError,
)
from latentcache.format.lease import UNGUARDED, Leaseholder
from latentcache.format.rounds import Rounds
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.planning.corpora import takes_over
from latentcache.planning.create import open_or_new, sized, take_step
from latentcache.planning.fields.names import check_kept_names
from latentcache.planning.grow import Difference, plan_growth
from latentcache.planning.plan import Plan, check_geometry, make_plan
from latentcache.planning.planned import PlannedCache
from latentcache.planning.recipe import resolve_encoder
from latentcache.planning.step import Step
from latentcache.redaction import printable
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.urls import redact_url

#: Clips that an error names before it says how many more there are.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What planning tells as it goes. on_step: what is about to be done, before anything is written."""

    on_sources: Callable[[Corpus], object] = lambda _: None
    on_probed: Callable[[], object] = lambda: None
    on_step: Callable[[PlannedCache, Step, Difference], object] = lambda *_: None


def grow_cache(
    config: Config,
    *,
    prune: bool = False,
    check_content: bool = False,
    dry_run: bool = False,
    hooks: Hooks | None = None,
    holder: Leaseholder = UNGUARDED,
    prober: Callable[[Config], Prober] | None = None,
) -> PlannedCache:
    """Compare the corpus with the cache, and write what differs as its next generation.

    A cache that is not there is made. If another run grows the cache meanwhile, what is left is looked
    at again. holder: of the lease that the cache's storage may need. For prune and check_content see
    `plan_growth`. dry_run: nothing is written. prober: what looks at sources, `probing_pool` if omitted.

    Raises CorpusError, ConfigError, GeometryError, RecipeMismatchError, CacheError, LeaseError,
    StorageError; and MachineError if the temporary folder is full.
    """
    hooks = hooks or Hooks()
    spec, identity = resolve_encoder(config)
    planned = open_or_new(config, spec, identity)
    if not dry_run:
        planned = planned.held_by(holder)
    check_geometry(config.clips, spec)
    corpus = read_corpus(config.corpus)
    pa.default_memory_pool().release_unused()
    hooks.on_sources(corpus)
    by_time = config.clips.goes_by_time
    saved = SavedProbes(planned.storage, config.corpus.max_pixels, by_time=by_time)
    rounds = Rounds("a step of this corpus")
    while True:
        rounds.next()
        step, difference = plan_growth(
            planned,
            corpus.table,
            lambda: (prober or probing_pool)(config),
            prune=prune,
            check_content=check_content,
            on_probed=hooks.on_probed,
            saved=None if dry_run else saved,
        )
        check_kept_names(planned.storage, step)
        difference.num_saved = saved.num_found
        step.parents = (corpus.parent,) if corpus.parent and step else ()
        step.corpus = corpus.folder
        step.takes_over = takes_over(
            planned.storage, planned.manifest, step, corpus.table, difference.unreadable
        )
        planned = sized(planned, step.num_clips)
        if not planned.manifest.generations:
            check_anything(config, step)
        hooks.on_step(planned, step, difference)
        if dry_run:
            return planned
        taken = take_step(planned, step, holder)
        if taken is not None:
            saved.remove()
            return taken
        planned = open_or_new(config, spec, identity).held_by(holder)


def plan_corpus(
    config: Config,
    spec: LatentSpec,
    on_sources: Callable[[Corpus], object] = lambda _: None,
    on_probed: Callable[[], object] = lambda: None,
    saved: SavedProbes | None = None,
    max_sources: int | None = None,
) -> Plan:
    """Read, probe and plan the corpus, or `max_sources` of it, drawn at random.

    Raises CorpusError, GeometryError; of `saved` StorageError.
    """
    check_geometry(config.clips, spec)
    corpus = read_corpus(config.corpus)
    on_sources(corpus)
    with probing_pool(config) as pool:
        sources = probe_sources(_some(corpus.table, max_sources), pool, on_probed, saved)
    shard_clips = config.cache.shard_clips_of(sources.num_rows, config.run.workers)
    plan = make_plan(sources, config.clips, spec, shard_clips=shard_clips)
    if not plan.num_clips:
        raise CorpusError(_nothing_to_encode(config, plan.rejected))
    return plan


def probing_pool(config: Config) -> Prober:
    """Return the processes that look at sources, or what looks at clips of a cache."""
    if is_cache_url(config.corpus.source):
        return ParentProbes(config.corpus)
    processes = config.run.num_decode_processes(num_cpus())
    return DecodePool.for_run(config, num_processes=processes, num_buffers=processes)


def check_anything(config: Config, step: Step) -> None:
    """Raise CorpusError if a new cache would have no clip."""
    if step.num_clips:
        return
    rejected = step.rejected if step.rejected is not None else SAMPLE_SCHEMA.empty_table()
    raise CorpusError(_nothing_to_encode(config, rejected))


def _some(sources: pa.Table, number: int | None) -> pa.Table:
    if number is None or number >= sources.num_rows:
        return sources
    mask = np.zeros(sources.num_rows, bool)
    mask[np.random.default_rng(0).choice(sources.num_rows, number, replace=False)] = True
    return sources.filter(pa.array(mask))


def _nothing_to_encode(config: Config, rejected: pa.Table) -> str:
    reasons = Counter(rejected["reason"].to_pylist())
    lines = [f"  {count} x {reason}: {REASONS[reason]}" for reason, count in reasons.most_common()]
    examples = rejected.select(["source", "message"]).slice(0, NAMED).to_pylist()
    lines += [f"  {printable(row['source'])}: {row['message']}" for row in examples]
    head = f"{redact_url(config.corpus.source)}: no source gives a clip, so there is nothing to encode:"
    return "\n".join([head, *lines])
