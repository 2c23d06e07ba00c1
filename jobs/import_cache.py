"""Make a cache of latents that another trainer's script has written; no code of its files is run.

An import that was stopped goes on with the same command. Exit status: 0; 3 if some clips hold NaN.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from tqdm import tqdm

from latentcache.config.files import load_config
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, ConfigError, CorpusError
from latentcache.exchange.checks import expect_clips
from latentcache.exchange.files import all_files
from latentcache.exchange.layouts import get_layout
from latentcache.exchange.records import Found
from latentcache.exchange.since_planned import notes_of, refuse_pending, since_planned
from latentcache.exchange.stamps import stamped, stamps_in
from latentcache.exchange.take_in import import_shards, in_words, manifest_of, plan_import
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import Manifest, read_cache_json
from latentcache.planning.create import take_step, write_metadata
from latentcache.planning.planned import PlannedCache
from latentcache.planning.recipe import make_manifest, resolve_encoder
from latentcache.running.publisher import RunSnapshot
from latentcache.storage.folder import Storage, redact

from . import parsers
from .cli import OK, SOME_FAILED, copying_config, run_job
from .derived import check_overrides, check_places, options_of, planned_before


def main() -> int:
    """Parse the command line and run."""
    return run_job(import_cache, parsers.import_())


def import_cache(args: argparse.Namespace) -> int:
    """Plan a layout's clips, unless that was done before, and commit them; returns the exit status."""
    overrides = args.overrides
    check_overrides(overrides)
    target_options, source_options = options_of(overrides)
    check_places([args.source], args.cache)
    like = _like(args.like, source_options)
    source, storage = Storage(args.source, source_options), Storage(args.cache, target_options)
    words = in_words(args.layout, source)
    planned = planned_before(storage, overrides)
    if planned is not None:
        _check_import(planned, words)
    with _nothing_or_something(planned):
        found = _look(args.layout, source, like)
    make = partial(manifest_of, like, dtype=args.dtype, shard_format=args.format)
    new = planned or _new(make(found, storage.absolute_url), storage, args, overrides)
    with Leaseholder(lease_s=new.config.run.lease_s, take=args.take_lease) as holder:
        if planned is None:
            planned = take_step(new, plan_import(found, source), holder)
            planned = planned or planned_before(storage, overrides)
            assert planned is not None
            _check_import(planned, words)
        missing = planned.missing_shards()
        since = since_planned(planned, found, missing)
        refuse_pending(since, source)
        for note in (*found.notes, *notes_of(since, source)):
            print(f"note     {note}")
        if since.same.records:
            _check_recipe(planned, make(since.same, storage.absolute_url))
        return _import(planned.held_by(holder), since.same, source, missing)


@contextlib.contextmanager
def _nothing_or_something(planned: PlannedCache | None) -> Iterator[None]:
    """Let errors say what is there of an import that goes on, where they say that nothing is."""
    try:
        yield
    except (ConfigError, CorpusError) as error:
        if planned is None:
            raise
        text = str(error).replace("Nothing was imported.", "What was imported stays.")
        raise type(error)(text) from None


def _look(layout: str, source: Storage, like: Manifest) -> Found:
    """Return what a folder holds, with the stamps of its files. Raises ConfigError, CorpusError."""
    paths = all_files(source)
    if not (paths or source.list("") or source.folders("")):
        raise ConfigError(
            f"{redact(source.url)}: there is no folder here with files. Check the path."
        )
    stamps = stamps_in(source, paths)  # before any file is read
    found = stamped(get_layout(layout).find(source, like.spec), stamps)
    expect_clips(found, source)
    return found


def _new(
    manifest: Manifest, storage: Storage, args: argparse.Namespace, overrides: Sequence[str]
) -> PlannedCache:
    """Return a cache that is yet to be made."""
    config = copying_config(manifest, args.cache, overrides)
    return PlannedCache(config=config, manifest=manifest, storage=storage)


def _like(name: str, options: Mapping[str, Any]) -> Manifest:
    """Return what a cache, or the cache of a configuration, is."""
    if PurePath(name).suffix not in (".yaml", ".yml"):
        return read_cache_json(Storage(name, options))
    config = load_config(name, [])
    return make_manifest(config, *resolve_encoder(config))


def _check_import(planned: PlannedCache, words: str) -> None:
    """Raise CacheError unless the cache that is there is an import of the same folder."""
    url, first = redact(planned.storage.url), planned.manifest.generations[0]
    if first.kind != "import":
        raise CacheError(
            f"{url} is a cache already, and was not made by `latentcache import`. Nothing was changed. "
            "Give the new cache another folder."
        )
    if first.selection != words:
        raise CacheError(
            f"{url} is an import of {first.selection}, and this one is of {words}. Nothing was changed. "
            "Run it with the folder of the first time, or give the new cache another folder."
        )


def _check_recipe(planned: PlannedCache, wanted: Manifest) -> None:
    """Raise CacheError unless the cache that is there was made with the same options."""
    manifest = planned.manifest
    if manifest.fingerprint != wanted.fingerprint or manifest.format != wanted.format:
        raise CacheError(
            f"{redact(planned.storage.url)} is an import of {manifest.generations[0].selection}, and this "
            "one differs, in --like, --dtype or --format. Nothing was changed. Run the same command as the "
            "first time, or give the new cache another folder."
        )


def _import(
    planned: PlannedCache, found: Found, source: Storage, missing: Sequence[ShardId]
) -> int:
    storage, url = planned.storage, redact(planned.storage.url)
    write_metadata(storage, planned.manifest)  # that of a run that was stopped before it
    snapshot = RunSnapshot(storage, planned.manifest, planned.config.run.snapshot_interval_s)
    total = planned.num_clips(missing)
    with tqdm(total=total, unit="clip", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for report in import_shards(planned, found, source, missing):
            snapshot.add(report)
            bar.update(report.num_clips)
    published = snapshot.close()
    num_ok = sum(published["num_ok"].to_pylist())
    num_failed = sum(published["num_clips"].to_pylist()) - num_ok
    print(f"cache    {num_ok} clips ok, {num_failed} failed")
    print(f"Next:  latentcache verify {shlex.quote(url)}")
    return SOME_FAILED if num_failed else OK


if __name__ == "__main__":
    sys.exit(main())
