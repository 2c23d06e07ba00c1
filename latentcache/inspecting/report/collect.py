"""Everything that the report shows of a cache: facts, statistics of latents, sampled clips."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from latentcache.config.sections import Config
from latentcache.core.records import ClipId
from latentcache.core.spec import ITEM_BYTES
from latentcache.errors import CorruptionError, LatentCacheError
from latentcache.format.manifest import Manifest
from latentcache.inspecting.choose import sample_places
from latentcache.inspecting.clip_reader import PairReader
from latentcache.inspecting.report.facts import Facts, read_facts
from latentcache.inspecting.report.latents import Statistics, describe_latents
from latentcache.inspecting.report.reconstructions import Shown, show
from latentcache.inspecting.status_words import state_in_words
from latentcache.inspecting.watch import Watch
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Clips whose latents are read for the statistics (at least as many as are shown), and the most bytes.
STATISTICS_CLIPS, STATISTICS_BYTES = 64, 1 << 29
#: The most bytes of pictures on the page.
PICTURE_BYTES = 3 << 20


@dataclass(kw_only=True)
class Report:
    """What there is to show. url: without secrets. state: how far the cache is, and how to go on, in words.

    problem: why nothing could be decoded. damaged: parts of the sample that differ from what was written.
    """

    url: str
    manifest: Manifest
    facts: Facts
    state: str
    statistics: Statistics | None = None
    clips: list[Shown] = field(default_factory=list)
    problem: str | None = None
    damaged: list[str] = field(default_factory=list)


def collect(
    storage: Storage,
    manifest: Manifest,
    config: Config,
    *,
    num_clips: int,
    seed: int,
    device: torch.device | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Report:
    """Read a cache, decode a sample of it, and compare it with its sources.

    What is committed now is shown, published or not. config: as for PairReader. `say` gets a line a step.
    Raises CorruptionError where a sample table cannot be read.
    """
    say("reading the sample tables")
    url = redact(storage.url)
    report = Report(
        url=url,
        manifest=manifest,
        facts=read_facts(storage, manifest),
        state=state_in_words(Watch(storage).look(time.time()), shlex.quote(url), manifest),
    )
    cache = Cache(storage, manifest, report.facts.index)
    with PairReader(cache, config, device) as reader:
        wanted = max(num_clips, _affordable(manifest))
        places = sample_places(cache, report.facts.index, wanted, seed)
        say(f"reading the latents of {len(places)} clips")
        report.statistics = describe_latents(_latents(reader, places, report), manifest.spec)
        _add_clips(report, reader, places[:num_clips], say)
    return report


def _affordable(manifest: Manifest) -> int:
    largest = max(math.prod(b.shape) for b in manifest.buckets) * ITEM_BYTES[manifest.spec.dtype]
    return min(STATISTICS_CLIPS, STATISTICS_BYTES // largest)


def _latents(
    reader: PairReader, places: Sequence[ClipId], report: Report
) -> Iterator[torch.Tensor]:
    """Yield the stored samples that can be read; the others are noted."""
    for place in places:
        try:
            latents = reader.latents(place)
        except CorruptionError as error:
            report.damaged.append(str(error))
        else:
            yield latents


def _add_clips(
    report: Report, reader: PairReader, places: Sequence[ClipId], say: Callable[[str], object]
) -> None:
    if not places:
        return
    try:
        say(f"loading {report.manifest.spec.model_class}")
        _ = reader.decoder
    except LatentCacheError as error:
        report.problem = str(error)
        return
    for number, place in enumerate(places, 1):
        say(f"decoding clip {number} of {len(places)}")
        try:
            pair = reader.pair(place)
        except CorruptionError:
            continue  # noted when the statistics were made
        report.clips.append(show(pair, PICTURE_BYTES // len(places)))
