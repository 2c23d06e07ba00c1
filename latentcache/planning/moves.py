"""What a step says of known sources that are at another URL now, or have another stamp.

Of a signed URL only the query differs each day, and all of them would be written again each time. So other
queries and users are noted only of sources that something is still to be read of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.columns import taken
from latentcache.core.names import Rows
from latentcache.planning.known import KnownCache
from latentcache.planning.masks import CHUNK_ROWS, Mask, chosen, mask_of, same
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.planning.to_read import sources_to_read
from latentcache.storage.parts import PREFIX
from latentcache.storage.spill import Spill
from latentcache.storage.urls import QUERIES, USERS


def say_moves(
    step: Step,
    planned: PlannedCache,
    known: KnownCache,
    corpus: pa.Table,
    at: Rows,
    *,
    all_urls: bool,
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Say where known sources are now that have moved, and the stamps of those that were touched.

    They have the content that they had, and are not opened for this. at: the rows of the corpus's sources
    in what is known, -1 for those of which nothing is to be said. all_urls: other queries and users are
    noted of all sources. step: it has its columns already, for of these fields may be made again. Returns
    the names of those that moved, and of those that were only touched.
    """
    is_known, table = at >= 0, known.sources.table
    moved, signed, touched, waiting = (np.zeros(len(at), bool) for _ in range(4))
    for start in range(0, len(at), CHUNK_ROWS):
        here = slice(start, start + CHUNK_ROWS)
        now, rows = corpus.slice(start, CHUNK_ROWS), at[here]
        before = {name: taken(table[name], rows) for name in ("url", "stamp", "what")}
        moved[here] = differ(now["url"], before["url"], place)
        signed[here] = mask_of(pc.not_equal(now["url"], before["url"]))
        is_stamped = mask_of(pc.is_valid(now["stamp"]))
        touched[here] = is_stamped & ~same(now["stamp"], before["stamp"])
        waiting[here] = mask_of(pc.not_equal(before["what"], "planned"))
    moved |= signed & (touched | waiting | all_urls)  # a row is written of those that were touched
    signed &= is_known & ~moved
    if signed.any():
        moved |= signed & sources_to_read(planned, known, corpus["name"], step.columns)
    said = _say(step, known, corpus, at, moved & is_known, "moved")
    return said, _say(step, known, corpus, at, touched & ~moved & is_known, "touched")


def _say(
    step: Step, known: KnownCache, corpus: pa.Table, at: Rows, mask: Mask, what: str
) -> pa.ChunkedArray:
    """Say something of known sources; returns their names."""
    spill, rows = Spill(), at[mask]
    said = chosen(corpus.select(["name", "url", "kind", "stamp"]), mask, spill.put)
    pieces = (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
    parts = (taken(known.sources.table["identity"], some) for some in pieces)
    said = said.append_column("identity", spill.joined(parts, pa.string()))
    names = ["source" if name == "name" else name for name in said.column_names]
    schema = pa.schema([(name, pa.string()) for name in names])
    step.add_sources(said.rename_columns(names).cast(schema), what)
    return said["name"]


def differ(
    urls: pa.ChunkedArray,
    before: pa.Array,
    part: Callable[[pa.ChunkedArray], pa.ChunkedArray],
) -> Mask:
    """Tell which URLs differ in some part from those known; null there: of no known source."""
    if not pc.any(pc.not_equal(urls, before)).as_py():
        return np.zeros(len(urls), bool)
    return mask_of(pc.not_equal(part(urls), part(pa.chunked_array([before]))))


def place(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return URLs without queries, users and passwords, and paths as they are: see `public_name`."""
    for pattern, kept in (*QUERIES, *USERS):
        urls = pc.replace_substring_regex(urls, pattern, kept)
    return urls


def part_of_file(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which part of their files URLs name; of whole files nothing."""
    return pc.replace_substring_regex(urls, rf"(?s)({PREFIX}::)?.*", r"\1")
