"""`corpus.weight`: how often a loader takes each source's clips, as a kept column of its own."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.sections import CorpusConfig
from latentcache.core.records import MAX_WEIGHT
from latentcache.errors import CorpusError
from latentcache.format.columns import WEIGHT
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.urls import redact_url


def with_weight_read(config: CorpusConfig) -> CorpusConfig:
    """Return a configuration of which the column of weights is read, too."""
    if is_cache_url(config.source) and not config.keep:
        return config  # all columns come along
    wanted = [config.weight] if isinstance(config.weight, str) else []
    if missing := [name for name in wanted if name not in config.keep]:
        return config.model_copy(update={"keep": [*config.keep, *missing]})
    return config


def with_weights(table: pa.Table, config: CorpusConfig) -> pa.Table:
    """Return sources with their weights as a kept column, float64; as they are if nothing gives any.

    Raises CorpusError for a weight that is no number from 0 to MAX_WEIGHT: loaders would refuse it.
    """
    given = config.weight
    if given is None:
        return table
    if isinstance(given, str):
        weights = _numbers(table, given, config)
        comes_along = is_cache_url(config.source) and not config.keep
        if given not in config.keep and not comes_along:
            table = table.drop_columns([given])
    else:
        weights = _by_name(table["name"], given if isinstance(given, Mapping) else {"*": given})
    if WEIGHT in table.column_names:
        table = table.drop_columns([WEIGHT])
    return table.append_column(WEIGHT, weights)


def _by_name(names: pa.ChunkedArray, given: Mapping[str, float]) -> pa.Array:
    """Return the weight of the longest pattern that each name matches, else 1."""
    patterns = sorted(given, key=lambda pattern: (-len(pattern), pattern))

    def weight_of(name: str) -> float:
        return next((given[p] for p in patterns if fnmatch.fnmatchcase(name, p)), 1.0)

    if list(given) == ["*"]:
        return pa.array(np.full(len(names), float(given["*"])))
    return pa.array([weight_of(name) for name in names.to_pylist()], pa.float64())


def _numbers(table: pa.Table, name: str, config: CorpusConfig) -> pa.ChunkedArray:
    where = f"corpus.weight: column {name!r} of {redact_url(config.source)}"
    if name not in table.column_names:
        raise CorpusError(f"{where} is not there. Correct the name, or remove corpus.weight.")
    column = table[name]
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_nested(kind):
        raise CorpusError(f"{where} holds {kind}; a weight is a number, 0 or more.")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    try:
        numbers = pc.fill_null(column.cast(pa.float64()), 1.0)
    except pa.ArrowException as error:
        raise CorpusError(f"{where} is to hold numbers, 0 or more: {error}.") from None
    good = pc.and_(pc.greater_equal(numbers, 0.0), pc.less_equal(numbers, float(MAX_WEIGHT)))
    if (row := pc.index(good, False).as_py()) >= 0:
        raise CorpusError(
            f"{where} is {numbers[row].as_py():g} for {table['name'][row].as_py()!r}. A weight says how "
            f"often a clip comes per epoch: a number from 0 to {MAX_WEIGHT:,}. Correct the column."
        )
    return numbers
