"""The folders of the corpora that a cache's sources came from, and when one takes over those of another.

A table that names its sources by absolute paths or URLs can move, and nothing about a source changes. A
generation says so then: paths in the table's columns may start in its new folder, or in the old one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from latentcache.core.names import NameIndex
from latentcache.format.generations import Generation
from latentcache.format.manifest import Manifest
from latentcache.format.planned_sources import read_sources
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage

#: Generations that sources come with; others plan and copy clips of sources that are known.
OF_CORPORA = ("plan", "grow", "import", "merge", "copy")


def generations_of_corpora(manifest: Manifest) -> list[Generation]:
    """Return the generations that sources came with, in order."""
    return [each for each in manifest.generations if each.kind in OF_CORPORA]


def may_have_moved(
    generations: Sequence[Generation], came: Generation, *, within: bool = False
) -> bool:
    """Tell whether the corpus that a source came from may be in the folder of a later one.

    generations: those of corpora. within: the source is in its corpus's folder, so that it would have
    moved with the corpus, unless a later corpus names it by the same place.
    """
    later = (each for each in generations if each.number > came.number)
    return any(each.corpus != came.corpus and (each.takes_over or not within) for each in later)


def takes_over(
    storage: Storage, manifest: Manifest, step: Step, corpus: pa.Table, left_out: pa.ChunkedArray
) -> bool:
    """Tell whether a step's corpus names known sources of which nothing else says where their corpus is.

    corpus: its sources; left_out: names of those that stay as they were known. Those that the step says
    something of come from this corpus now.
    """
    generations = generations_of_corpora(manifest)
    needing = {each.number for each in generations if _is_silent(generations, each, step)}
    if not needing:
        return False
    names = corpus["name"]
    left = np.ones(len(names), bool)
    for known in (left_out, *(table["source"] for table in step.sources)):
        left &= NameIndex(known).find(names) < 0
    for generation in reversed(generations):
        if not generation.num_sources or not left.any():
            continue
        said = NameIndex(read_sources(storage, generation)["source"]).find(names) >= 0
        if generation.number in needing and (left & said).any():
            return True
        left &= ~said
    return False


def _is_silent(generations: Sequence[Generation], came: Generation, step: Step) -> bool:
    """Tell whether paths of sources that came with a generation would be taken to start elsewhere.

    Of later corpora that took them over, this can only be so of paths that changed since, or change now.
    """
    since = [each for each in generations if each.number > came.number and each.takes_over]
    if not step.columns:
        since = [each for each in since if _has_changed_paths(generations, each)]
    return any(
        each.corpus not in ("", step.corpus) and not may_have_moved(generations, each, within=True)
        for each in (came, *since)
    )


def _has_changed_paths(generations: Sequence[Generation], taker: Generation) -> bool:
    """Tell whether a corpus that took sources over may have changed their columns, then or later."""
    later = (each for each in generations if each.number >= taker.number)
    return any(each.num_relabelled and each.corpus == taker.corpus for each in later)
