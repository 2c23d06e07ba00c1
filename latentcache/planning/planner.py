"""From a configuration to a planned cache, and from a cache back to what is left to do.

Everything a user can get wrong is found here, before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from latentcache.config.sections import Config
from latentcache.core.machine import num_cpus
from latentcache.core.records import REASONS
from latentcache.core.spec import LatentSpec
from latentcache.corpus.probe import probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.sources import Corpus, read_corpus
from latentcache.decoders.pool import DecodePool
from latentcache.errors import (
    CorpusError,
)
from latentcache.planning.plan import Plan, check_geometry, make_plan
from latentcache.redaction import printable, redact

#: Clips that an error names before it says how many more there are.
NAMED = 5


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
    processes = config.run.num_decode_processes(num_cpus())
    with DecodePool.for_run(config, num_processes=processes, num_buffers=processes) as pool:
        sources = probe_sources(_some(corpus.table, max_sources), pool, on_probed, saved)
    plan = make_plan(sources, config.clips, spec, shard_clips=config.cache.shard_clips)
    if not plan.num_clips:
        raise CorpusError(_nothing_to_encode(config, plan))
    return plan


def _some(sources: pa.Table, number: int | None) -> pa.Table:
    if number is None or number >= sources.num_rows:
        return sources
    mask = np.zeros(sources.num_rows, bool)
    mask[np.random.default_rng(0).choice(sources.num_rows, number, replace=False)] = True
    return sources.filter(pa.array(mask))


def _nothing_to_encode(config: Config, plan: Plan) -> str:
    reasons = Counter(plan.rejected["reason"].to_pylist())
    lines = [f"  {count} x {reason}: {REASONS[reason]}" for reason, count in reasons.most_common()]
    examples = plan.rejected.slice(0, NAMED).to_pylist()
    lines += [f"  {printable(row['source'])}: {row['message']}" for row in examples]
    head = f"{redact(config.corpus.source)}: no source gives a clip, so there is nothing to encode:"
    return "\n".join([head, *lines])
