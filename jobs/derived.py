"""What `merge` and `copy` share: a cache made from others, planned once, then copied shard by shard."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from latentcache.copying.field_choice import FieldChoice, choose_fields
from latentcache.copying.gather import (
    Gathered,
    gather,
    in_words,
    manifest_of,
    open_member,
)
from latentcache.copying.owners import Prefer
from latentcache.copying.parents import Parents, is_parent
from latentcache.copying.selection import Selection
from latentcache.copying.shards import pending_copies
from latentcache.copying.stored_rows import OpenCache, copy_quantiser
from latentcache.core.records import ShardFormat
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import Manifest, read_all, read_manifest
from latentcache.format.paths import CACHE_JSON
from latentcache.planning.create import check_unused, take_step, write_metadata
from latentcache.planning.fields.folders import only_corpus
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import redact
from latentcache.running.publisher import RunSnapshot
from latentcache.storage.folder import Storage
from latentcache.storage.places import check_new_place, local_place

from .cli import OK, copying_config, is_override, options_in
from .progress import copy_missing, print_left, print_left_out

#: Options of the new cache's storage; and of those that are copied from, where they need others.
_TARGET, _SOURCE = "cache.storage_options", "corpus.storage_options"


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return URLs, and overrides of storage options. Raises ConfigError for other overrides."""
    overrides = [word for word in words if is_override(word)]
    check_overrides(overrides)
    return [word for word in words if word not in overrides], overrides


def check_overrides(words: Sequence[str]) -> None:
    """Raise ConfigError for a word that is no override of storage options."""
    names = tuple(f"{name}{end}" for name in (_TARGET, _SOURCE) for end in (".", "="))
    for word in words:
        if not word.startswith(names):
            raise ConfigError(
                f"{word.partition('=')[0]}: this job copies what is stored, so nothing but "
                f"{_TARGET} and {_SOURCE} can differ here. Leave it out."
            )


def derive(
    args: argparse.Namespace,
    kind: Literal["merge", "copy"],
    urls: Sequence[str],
    target: str,
    overrides: Sequence[str],
    *,
    selection: Selection,
    prefer: Prefer | None = None,
    shard_format: ShardFormat | None = None,
) -> int:
    """Plan a cache of the clips of others, unless that was done before, and copy them.

    Returns the exit status. Raises CacheError, ConfigError, StorageError.
    """
    check_places(urls, target)
    target_options, source_options = options_of(overrides)
    sources = [_open(url, source_options, overrides) for url in urls]
    storage = Storage(target, target_options)
    planned, step = planned_before(storage, overrides), None
    if planned is None:
        members = [open_member(s, allow_unfinished=args.allow_unfinished) for s in sources]
        manifest = manifest_of(members, shard_format, storage.absolute_url)
        gathered = gather(members, selection, prefer, kind)
        _print(gathered, manifest)
        if not gathered.num_clips:
            raise ConfigError(
                "No clip is selected, so there is nothing to copy. Nothing was written."
            )
        config = copying_config(manifest, target, overrides)
        planned = PlannedCache(config=config, manifest=manifest, storage=storage)
        step = gathered.step
        step.corpus = only_corpus(sources)
        choice = choose_fields([member.opened for member in members])
        _print_fields(choice)
        if args.dry_run:
            print_left_out(choice)
    words = in_words(selection, prefer)
    if step is None:
        _check_same(planned, kind, sources, words, shard_format)
        print_left(planned)
    if args.dry_run:
        print("Dry run: nothing was written.")
        return OK
    with Leaseholder(lease_s=planned.config.run.lease_s, take=args.take_lease) as holder:
        if step is not None:
            taken = take_step(planned, step, holder) or planned_before(storage, overrides)
            assert taken is not None
            planned = taken
            _check_same(planned, kind, sources, words, shard_format)
        opened = [OpenCache(storage=s.storage, manifest=s.manifest) for s in sources]
        planned = planned.held_by(holder)
        copy_quantiser(opened[0], planned.storage, planned.manifest)
        return _copy(planned, Parents(source_options, opened))


def check_places(urls: Sequence[str], target: str) -> None:
    """Raise ConfigError if a cache would be written into one that it is copied from, or would be lost."""
    check_new_place(target, "the target")
    there = _place(target)
    for url in urls:
        here = _place(url)
        if f"{there}/".startswith(f"{here}/") or f"{here}/".startswith(f"{there}/"):
            raise ConfigError(
                f"{redact(target)} is the same place as {redact(url)}, or one is within the other. Nothing "
                "was written. Give the new cache a folder of its own."
            )
    if len({_place(url) for url in urls}) < len(urls):
        raise ConfigError("a cache is named twice among those to copy from; name each once")


def _place(url: str) -> str:
    place = local_place(url)
    return url.rstrip("/") if place is None else str(place)


def options_of(overrides: Sequence[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the storage options of the new cache, and of those to copy from. Raises ConfigError."""
    target = options_in(overrides, "cache", {})
    return target, options_in(overrides, "corpus", target)


def _open(url: str, options: Mapping[str, Any], overrides: Sequence[str]) -> PlannedCache:
    storage = Storage(url, options)
    manifest = read_manifest(storage)
    config = copying_config(manifest, url, overrides)
    return PlannedCache(config=config, manifest=manifest, storage=storage)


def planned_before(storage: Storage, overrides: Sequence[str]) -> PlannedCache | None:
    """Return the new cache if it is planned. Raises CacheError if something else is in its folder."""
    found = storage.list("")
    if not storage.exists(CACHE_JSON):
        check_unused(storage, found)
        return None
    manifest = read_all(storage)
    if not manifest.generations:
        return None
    config = copying_config(manifest, storage.url, overrides)
    return PlannedCache(config=config, manifest=manifest, storage=storage)


def _check_same(
    planned: PlannedCache,
    kind: str,
    sources: Sequence[PlannedCache],
    words: str,
    shard_format: ShardFormat | None,
) -> None:
    """Raise CacheError unless the cache that is there is the one that is asked for."""
    first, url = planned.manifest.generations[0], redact(planned.storage.url)
    asked = "with the same arguments as the first time, or give the new cache another folder"
    if first.kind != kind:
        raise CacheError(
            f"{url} is a cache already, and was not made by `latentcache {kind}`. Nothing was changed. "
            "Give the new cache another folder."
        )
    same = len(first.parents) == len(sources) and all(
        is_parent(source.manifest, parent)
        for source, parent in zip(sources, first.parents, strict=True)
    )
    if not same:
        names = ", ".join(parent.url for parent in first.parents)
        raise CacheError(f"{url} is a {kind} of {names}, as they were. Run {asked}.")
    if first.selection != words or shard_format not in (None, planned.manifest.format):
        name = planned.manifest.format
        was, now = _what(kind, first.selection, name), _what(kind, words, shard_format or name)
        raise CacheError(
            f"{url} is a {kind} of {was}, and asked for is one of {now}. Run it {asked}."
        )


def _what(kind: str, words: str, shard_format: str) -> str:
    """Return what a merge or a copy is of. words: `in_words` of its selection."""
    if kind == "merge":
        return f"all clips, {f'--{words}' if words else 'without --prefer'}, in {shard_format}"
    return f"{words or 'all clips'}, in {shard_format}"


def _print(gathered: Gathered, manifest: Manifest) -> None:
    print(f"{'bucket':<16}{'clips':>10}{'shards':>9}")
    for name, count in gathered.counts.items():
        print(f"{name:<16}{count:>10}{-(-count // manifest.shard_clips):>9}")
    if gathered.num_waiting:
        print(
            f"waiting  {gathered.num_waiting} clips are still to be encoded and are not copied; "
            "`precompute` on the new cache takes them in"
        )
    if gathered.num_partial:
        print(
            f"partial  {gathered.num_partial} sources have some of their clips only, as they were copied "
            "from caches that were not finished; `precompute` on the new cache takes in the rest"
        )
    if gathered.num_other:
        print(
            f"left out {gathered.num_other} clips of {gathered.num_other_sources} sources that have other "
            "content, or content that is not known, in the cache that is preferred"
        )
    if gathered.num_twice:
        print(f"{gathered.num_twice} clips that several caches have are taken once")
    if gathered.num_relabelled:
        print(
            f"captions {gathered.num_relabelled} of these have other captions or kept columns in another "
            "cache: taken are those of the first cache that has the clip, if it is ok there. Name the "
            "cache first whose captions are to stay"
        )


def _print_fields(choice: FieldChoice) -> None:
    if choice.taken:
        print(f"fields   {', '.join(field.name for field in choice.taken)}")


def _copy(planned: PlannedCache, parents: Parents) -> int:
    """Make the copies, and publish. Raises CorruptionError where some cannot be made."""
    storage, url = planned.storage, redact(planned.storage.url)
    write_metadata(storage, planned.manifest)  # that of a run that was stopped before it
    copy_missing(planned, planned.missing_shards(), parents)
    interval_s = planned.config.run.snapshot_interval_s
    published = RunSnapshot(storage, planned.manifest, interval_s).close()
    if lost := pending_copies(planned, planned.missing_shards()):
        raise CorruptionError(
            f"{url}: {len(lost)} shards cannot be copied, such as {lost[0].name}, for what they are copied "
            "from is damaged or gone. The others are there. Repair the cache that they come from, and run "
            f"this again; or encode them: latentcache resume {shlex.quote(url)}"
        )
    num_ok = sum(published["num_ok"].to_pylist())
    num_failed = sum(published["num_clips"].to_pylist()) - num_ok
    print(f"\ncache    {num_ok} clips ok, {num_failed} failed")
    print(f"Next:  latentcache verify {shlex.quote(url)}")
    return OK
