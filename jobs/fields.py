"""What jobs do with fields: plan, encode, say what came of it. One field after the other."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress

from latentcache.config.fields import FieldConfig, GivenField, parse_field
from latentcache.core.fields import FieldArray
from latentcache.core.records import LASTING, REASONS, ShardId
from latentcache.core.units import human_bytes
from latentcache.errors import (
    ConfigError,
    LatentCacheError,
    LeaseError,
    SourceError,
    UnreachableError,
    did_you_mean,
)
from latentcache.format.fields.manifest import VersionKind, field_names, read_field
from latentcache.format.fields.paths import field_folder, field_json_path
from latentcache.format.fields.snapshot import (
    FieldCounts,
    count_field,
    read_field_index,
    rows_to_try_again,
    without_planned,
)
from latentcache.format.rounds import Rounds
from latentcache.planning.fields.places import config_folder
from latentcache.planning.fields.planned import (
    PlannedField,
    create_field,
    plan_field,
    reopen_field,
    write_field_metadata,
)
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import redact
from latentcache.running.driver import check_device
from latentcache.running.field_run import FieldRun
from latentcache.running.shared_fields import SharedFields, can_share
from latentcache.running.summary import Summary

from .cli import INTERRUPTED, OK, OTHER, SOME_FAILED, print_error
from .field_plans import OWN_CORPUS, naming, print_plan, start_of
from .progress import Bar, print_failures

#: After these no field of the cache can be made: each would wait as long for the storage.
OF_THE_CACHE = (UnreachableError, LeaseError)


def note_folders(fields: Iterable[PlannedField]) -> None:
    """Note where relative paths of fields that are there start now, in case the run is stopped early.

    One that cannot be opened is left out; `make_fields` says why. Raises ConfigError where it is not known
    where paths start that are to be read.
    """
    for planned in fields:
        path, there = field_json_path(planned.field.name), None
        if planned.has_paths and planned.storage.exists(path):
            with suppress(LatentCacheError):
                there = _with_moved(create_field(planned))
        if there is not None:
            there.check_folders()


def share_fields(
    cache: PlannedCache, fields: Iterable[PlannedField], missing: Sequence[ShardId]
) -> SharedFields:
    """Create those fields that a run of latents over `missing` makes along with them.

    One that cannot be created is left out; `make_fields` says why.
    """
    found = []
    for planned in fields if missing else ():
        if can_share(planned.config, cache.manifest):
            with suppress(LatentCacheError):
                found.append(create_field(planned))
    return _shared(cache, found)


def share_known_fields(
    cache: PlannedCache, overrides: Sequence[str], missing: Sequence[ShardId]
) -> SharedFields:
    """Return those fields of a cache that a run of latents over `missing` makes along with them.

    One that cannot be opened is left out; `resume_fields` says why.
    """
    found = []
    for name in field_names(cache.storage) if missing else ():
        with suppress(LatentCacheError):
            field = read_field(cache.storage, name, cache.manifest)
            if can_share(parse_field(name, field.settings), cache.manifest):
                found.append(reopen_field(cache, name, overrides))
    return _shared(cache, found)


def _shared(cache: PlannedCache, fields: Sequence[PlannedField]) -> SharedFields:
    if fields:
        names = ", ".join(planned.field.name for planned in fields)
        print(f"fields   {names}: of the pixels that the latents are encoded from")
    return SharedFields(fields, cache.config.run)


def make_fields(
    cache: PlannedCache,
    fields: Mapping[str, FieldConfig],
    *,
    update: bool = True,
    dry_run: bool = False,
    made: Mapping[str, Summary] | None = None,
    corpus: str | None = None,
) -> int:
    """Add fields, or bring up to date those that are there; returns the worst exit status.

    A field that cannot be made leaves the others alone. made: what has been made of them just now. corpus:
    where it is now, if that is known.
    """

    def make(name: str) -> int:
        with naming(name):
            planned = plan_field(cache, name, fields[name], corpus)
        print_plan(planned)
        if dry_run:
            return OK
        planned = create_field(planned)
        if corpus is not None or config_folder(fields[name]) is not None:
            planned = _with_moved(planned)
        if update:
            planned = _with_changed(planned)
        elif num := sum(map(len, planned.changed_rows().values())):
            print(
                f"changed  {num} clips have other texts than the field {name} encodes; --update "
                "encodes them"
            )
        return encode_field(planned, (made or {}).get(name))

    return _each(fields, make, "made")


def resume_fields(
    cache: PlannedCache,
    overrides: Sequence[str],
    *,
    names: Sequence[str] = (),
    retry_failed: bool = False,
    made: Mapping[str, Summary] | None = None,
) -> int:
    """Finish fields, of names or all; returns the worst exit status. made: as in `make_fields`."""
    known = field_names(cache.storage)
    _check_overrides(overrides, known)

    def finish(name: str) -> int:
        with naming(name):
            planned = reopen_field(cache, name, overrides)
        if isinstance(planned.config, GivenField):
            return _say_given(planned)
        if any(o.startswith(f"fields.{name}.folder=") for o in overrides):
            planned = _with_moved(planned)
        planned = _with_changed(planned)
        if retry_failed:
            planned = _with_failed(planned)
        write_field_metadata(planned)
        return encode_field(planned, (made or {}).get(name))

    return _each(names or known, finish, "finished")


def _each(names: Iterable[str], work: Callable[[str], int], done: str) -> int:
    """Work on fields, one after the other; returns the worst exit status.

    One that cannot be `done` leaves the others alone; an interrupt ends it. Raises what is OF_THE_CACHE.
    """
    status = OK
    for name in names:
        try:
            found = work(name)
        except OF_THE_CACHE:
            raise
        except LatentCacheError as error:
            print_error(error)
            print(f"field    {name} is not {done}; everything else stays", file=sys.stderr)
            found = error.exit_status
        if found == INTERRUPTED:
            return found
        status = worse(status, found)
    return status


def _check_overrides(overrides: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError if a setting is of a field that the cache does not have."""
    for override in overrides:
        section, _, rest = override.partition("=")[0].partition(".")
        name = rest.partition(".")[0]
        if section == "fields" and name not in known:
            raise ConfigError(
                f"{override}: the cache has no field {name!r}.{did_you_mean(name, known)} "
                f"It has: {', '.join(known) or 'none'}."
            )


def worse(one: int, other: int) -> int:
    """Return the exit status that says more: an error before failed clips, and these before none."""
    order = (OK, SOME_FAILED)
    rank = {status: n for n, status in enumerate(order)}
    return max(one, other, key=lambda status: rank.get(status, len(order)))


def _with_changed(planned: PlannedField) -> PlannedField:
    """Plan rows again whose texts have changed since they were planned. Raises CacheError."""
    rounds, printed = Rounds("an update of the field"), 0
    while rows := planned.changed_rows():
        rounds.next()
        num = sum(map(len, rows.values()))
        if num != printed:  # another run was first, and may have changed the same ones
            print(
                f"changed  {num} clips have other texts than the field {planned.field.name} encodes"
            )
        printed = num
        planned = _take_version(planned, "update", rows)
    return planned


def _with_moved(planned: PlannedField) -> PlannedField:
    """Note where relative paths start, as this run was told, for those that follow. Raises CacheError."""
    rounds = Rounds("another folder of the field's files")
    while planned.is_moved:
        rounds.next()
        name, folder = planned.field.name, config_folder(planned.config)
        print(f"folder   relative paths of {name} start at {redact(folder or OWN_CORPUS)} now")
        planned.with_folder()
        planned = planned.refreshed()
    return planned


def _say_given(planned: PlannedField) -> int:
    """Say what is missing of a field that no encoder of latentcache's makes."""
    if missing := planned.missing:
        print(
            f"field    {planned.field.name}: {planned.num_clips(missing)} clips are missing; its values "
            "come from a program of yours: run that again, and latentcache.write_field goes on"
        )
    return OK


def _with_failed(planned: PlannedField) -> PlannedField:
    rows = planned.failed_rows()
    for shard, others in _rows_of_failed_texts(planned).items():
        rows[shard] = rows.get(shard, frozenset()) | others
    print(f"retry    {sum(map(len, rows.values()))} clips of the field {planned.field.name}")
    return _take_version(planned, "retry", rows) if rows else planned


def _rows_of_failed_texts(planned: PlannedField) -> dict[ShardId, frozenset[int]]:
    """Return the rows that have a text, and others that failed, unless they are planned again already."""
    field, manifest = planned.field, planned.cache.manifest
    index = read_field_index(planned.storage, field)
    rows = rows_to_try_again(field, manifest, index, planned.cache.plan.standing)
    return without_planned(planned.storage, field, manifest, rows)


def _take_version(
    planned: PlannedField, kind: VersionKind, rows: Mapping[ShardId, frozenset[int]]
) -> PlannedField:
    planned.with_version(kind, rows)
    planned = planned.refreshed()
    write_field_metadata(planned)
    return planned


def encode_field(planned: PlannedField, made: Summary | None = None) -> int:
    """Encode what is missing of a field; print a summary, return the exit status.

    made: what has been made of it along with the latents. Raises what is OF_THE_CACHE.
    """
    name, url = planned.field.name, shlex.quote(redact(planned.storage.url))
    missing = planned.missing
    if missing:
        check_device(planned.cache.config.run)
        planned.check_folders()
    run = FieldRun(planned, made)
    go_on = f"Go on with:  latentcache resume {url}"
    try:
        with closing(run.events()) as events, Bar(planned.num_clips(missing)) as bar:
            for event in events:
                bar.show(event)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. {run.summary.shards} shards of {name} are safe. {go_on}",
            file=sys.stderr,
        )
        return INTERRUPTED
    except LatentCacheError as error:
        stopped = f"Stopped. {run.summary.shards} shards of {name} are safe. {go_on}"
        if isinstance(error, OF_THE_CACHE):
            print(stopped, file=sys.stderr)
            raise
        print_error(error)
        print(stopped, file=sys.stderr)
        if isinstance(error, SourceError) and planned.has_paths:
            print(
                f"Relative paths of {name} start at {start_of(planned)}. If its files are elsewhere "
                f"now:  latentcache resume {url} fields.{name}.folder=PLACE",
                file=sys.stderr,
            )
        if isinstance(error, ConfigError):  # another folder can be put right, settings cannot
            again = f"latentcache drop-field {url} {name} --yes"
            print(
                f"If a setting of {name} is wrong, drop it and add it again:  {again}",
                file=sys.stderr,
            )
        return error.exit_status
    samples = f"{field_folder(name)}/samples"
    print_failures(run.summary, f"the sample tables in {samples}, where status is 'failed'")
    return _print_state(planned, run, url)


def _lengths(arrays: Sequence[FieldArray]) -> str:
    """Return how many tokens there is room for, also in further arrays that have their own length."""
    first, *others = arrays
    own = [a for a in others if a.ragged and a.shape[0] != first.shape[0]]
    return " or ".join([str(first.shape[0]), *(f"{a.shape[0]} ({a.name})" for a in own)])


def _print_state(planned: PlannedField, run: FieldRun, url: str) -> int:
    """Say how a field stands; returns the exit status."""
    name = planned.field.name
    if not planned.storage.exists(field_json_path(name)):
        print(
            f"The field {name} was dropped while this run encoded it. Remove what the run has left:  "
            f"latentcache drop-field {url} {name} --yes",
            file=sys.stderr,
        )
        return OTHER
    field, cache = planned.refreshed().field, planned.cache
    if field.kind == "view":
        print(f"field    {field.name}: a part of the latents; nothing is stored")
        return OK
    found = count_field(field, cache.manifest, run.published, cache.plan.standing)
    stored = human_bytes(found.stored_bytes)
    print(f"field    {field.name}: {found.num_ok} clips ok, {found.num_failed} failed, {stored}")
    if found.num_lost:
        room = f"text than the {_lengths(planned.field.arrays)} tokens that the model sees"
        if field.kind == "audio":
            room = f"sound than the {field.recipe['seconds']:g} s that there is room for"
        print(
            f"warning  {found.num_lost} clips have more {room}: the rest is lost (lost_tokens in the "
            "field's sample tables)"
        )
    _print_failed_texts(field.name, found)
    may_succeed = any(reason not in LASTING for reason in found.failed_texts)
    if found.num_failed > found.num_lasting or may_succeed:
        print(f"Try the failed ones again:  latentcache resume {url} --field {name} --retry-failed")
    if unfinished := found.num_shards - found.num_committed:
        print(
            f"{unfinished} shards of {field.name} are not in the storage, though the run has ended: "
            f"another run may be at work on them. Go on with:  latentcache resume {url}",
            file=sys.stderr,
        )
        return OTHER
    failed = found.num_failed or found.num_failed_texts or run.summary.shards_failed
    return SOME_FAILED if failed else OK


def _print_failed_texts(name: str, found: FieldCounts) -> None:
    """Say which texts failed of clips that are ok."""
    if not found.num_failed_texts:
        return
    print(
        f"texts    {found.num_failed_texts} failed of clips that have others, of which loaders take one "
        f"({field_folder(name)}/samples, where status is 'failed'):"
    )
    for reason, count in sorted(found.failed_texts.items()):
        print(f"  {count:>6} x {reason}: {REASONS[reason]}")
