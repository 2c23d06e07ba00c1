"""What a configuration of `latentcache init --from` would take of a folder, and the trainer would not."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape

from latentcache.config.trainers import Converted, Reads
from latentcache.config.trainers.records import names_in
from latentcache.corpus.containers import is_media
from latentcache.corpus.source_table import IMAGES, VIDEOS
from latentcache.corpus.sources import is_hidden
from latentcache.storage.urls import suffix_of

_OTHER = {"video": "image", "image": "video"}
_AS_CLIPS = {"image": "each a clip of one frame", "video": "each by its first frame"}
_HINT = "Move these elsewhere, or make a table of the rest"


def looked_at(found: Converted) -> Converted:
    """Return a data set with what its trainer leaves out of a folder among what is lost.

    Where a folder has media of another kind, too, the source is a glob of suffixes, if one does it.
    """
    reads = found.reads
    if reads is None:
        return found
    names = names_in(reads.folder)
    if names is None:
        may_be = "; ".join(_kinds_left_out(reads).values())
        said = [f"{_left_out(reads, may_be)}. Whether it has any is not known: it is not here"]
        return dataclasses.replace(found, lost=(*found.lost, *(said if may_be else ())))
    media = [name for name in names if is_media(name) and not is_hidden(name)]
    return _narrowed(found, reads, {name: _why_left_out(reads, name, set(names)) for name in media})


def _narrowed(found: Converted, reads: Reads, media: Mapping[str, str | None]) -> Converted:
    """media: the videos and images of the folder, each with why the trainer leaves it out, or None."""
    corpus, lost = found.corpus, list(found.lost)
    suffixes = {posixpath.splitext(name)[1] for name, why in media.items() if why is None}
    if reads.kind and "kind" in media.values() and (pattern := one_glob(suffixes, reads.kind)):
        corpus = {**corpus, "source": f"{escape(reads.folder).rstrip('/')}/{pattern}"}
        media = {name: why for name, why in media.items() if fnmatchcase(name, pattern)}
        lost.append(
            f"{reads.key}: has {_OTHER[reads.kind]}s, too, so only {pattern} is taken, and no {reads.kind} "
            "with another suffix that comes later"
        )
    for why, what in _kinds_left_out(reads).items():
        if names := [name for name, its in media.items() if its == why]:
            lost.append(_left_out(reads, f"{what}: {_some(names)}"))
    return dataclasses.replace(found, corpus=corpus, lost=tuple(lost))


def one_glob(suffixes: Collection[str], kind: str) -> str | None:
    """Return a glob of suffixes of one length that matches none of the other kind; None without one."""
    if len({len(suffix) for suffix in suffixes}) != 1:
        return None
    letters = ["".join(sorted(set(column))) for column in zip(*suffixes, strict=True)]
    pattern = "*" + "".join(each if len(each) == 1 else f"[{each}]" for each in letters)
    others = VIDEOS if kind == "image" else IMAGES
    return None if any(fnmatchcase(f".{other}", pattern.lower()) for other in others) else pattern


def _why_left_out(reads: Reads, name: str, names: Collection[str]) -> str | None:
    """Return a key of `_kinds_left_out`, or None if the trainer takes a file."""
    stem, suffix = posixpath.splitext(name)
    if reads.kind not in (None, "image" if suffix_of(name) in IMAGES else "video"):
        return "kind"
    if reads.suffixes is not None and suffix[1:] not in reads.suffixes:
        return "suffix"
    if reads.caption is not None and f"{stem}{reads.caption}" not in names:
        return "caption"
    return None


def _kinds_left_out(reads: Reads) -> dict[str, str]:
    """Return what a trainer leaves out of a folder, in words."""
    left_out = {}
    if reads.kind is not None:
        other = _OTHER[reads.kind]
        left_out["kind"] = f"{other}s ({_AS_CLIPS[other]})"
    if reads.suffixes is not None:
        left_out["suffix"] = "files with a suffix that it does not know"
    if reads.caption is not None:
        left_out["caption"] = f"files without a {reads.caption} file beside them"
    return left_out


def _left_out(reads: Reads, what: str) -> str:
    return f"{reads.key}: left out by {reads.trainer}, but taken here: {what}. {_HINT}"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)}, such as {names[0]}"
