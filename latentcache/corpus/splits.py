"""The splits of a data set, by the names that `datasets` and the hub give to its files. No I/O."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable

from latentcache.core.units import plural
from latentcache.storage.row_bytes import ARROW
from latentcache.storage.urls import join, redact_url, suffix_of

#: What lies in the folder of a `DatasetDict.save_to_disk`, which has a folder per split.
_DICT = "dataset_dict.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
#: Files and folders that are splits by their names, to `datasets` too.
_WORDS = frozenset(
    "train training validation valid val dev test testing eval evaluation".split()  # noqa: SIM905
)


def note_of_splits(base: str, found: Collection[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return what to say of a corpus in several splits, which are taken together; nothing for one split.

    base: the folder or glob's folder; found: all files in it; names: those that hold the sources.
    """
    dicts = [posixpath.dirname(n) for n in found if posixpath.basename(n) == _DICT]
    places: dict[str, str] = {}
    for name in names:
        if found_split := _split_of(name, dicts):
            places.setdefault(*found_split)
    if len(places) < 2:
        return ()
    shown = ", ".join(sorted(places))
    split, place = next(iter(places.items()))
    return (
        f"{plural(len(places), 'split')} taken together as one corpus: {shown}. To take one, such as "
        f"{split}, set corpus.source: {redact_url(join(base, place))}",
    )


def _split_of(name: str, dicts: Iterable[str]) -> tuple[str, str] | None:
    """Return the split of a file and where its files are; None where its name says nothing of one."""
    for folder in dicts:
        start = f"{folder}/" if folder else ""
        if name.startswith(start) and "/" in name[len(start) :]:
            split = name[len(start) :].split("/", 1)[0]
            return split, start + split
    folder, stem = posixpath.dirname(name), posixpath.splitext(posixpath.basename(name))[0]
    if stem in _WORDS:
        return stem, name
    if suffix_of(name) != ARROW and (match := _SHARD.fullmatch(stem)):
        return match[1], posixpath.join(folder, f"{match[1]}-*.{suffix_of(name)}")
    parts = folder.split("/")
    depth = next((n for n, part in enumerate(parts) if part in _WORDS), None)
    return None if depth is None else (parts[depth], "/".join(parts[: depth + 1]))
