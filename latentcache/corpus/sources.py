"""Step 1 of the data flow: from a directory, glob, table, tar or file to the table of sources."""

from __future__ import annotations

import errno
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from latentcache.config.sections import CorpusConfig
from latentcache.core.units import human_bytes, some_of
from latentcache.corpus.cached import read_clips
from latentcache.corpus.containers import (
    containers,
    is_compressed_tar,
    is_media,
    one_folder,
    without_slash,
)
from latentcache.corpus.content import HEAD_BYTES, kind_of
from latentcache.corpus.source_table import (
    IMAGES,
    VIDEOS,
    absolute,
    read_source_table,
    to_source_table,
)
from latentcache.corpus.splits import note_of_splits
from latentcache.corpus.table_files import open_table, read_tables
from latentcache.corpus.table_readers import READERS
from latentcache.corpus.tars import TAR, read_tars
from latentcache.corpus.weights import with_weight_read, with_weights
from latentcache.errors import ConfigError, CorpusError, StorageError
from latentcache.format.columns import WEIGHT
from latentcache.format.generations import Parent
from latentcache.format.per_frame import OWN, PER_FRAME
from latentcache.format.schemas import PLAN_SCHEMA, PROBE_SCHEMA, SAMPLE_SCHEMA, SOURCE_SCHEMA
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.source_files import (
    file_facts,
    find_sizes,
    glob_files,
    irregular,
    is_directory,
    is_file,
    read_heads,
    read_many,
)
from latentcache.storage.urls import (
    folder_of,
    has_magic,
    is_url,
    join,
    redact_url,
    refused_scheme,
    suffix_of,
    without_query,
)

#: Names that `keep` cannot carry: columns that the cache's tables or the batches already have.
RESERVED = frozenset(
    {"latents", PER_FRAME, WEIGHT}.union(
        *(s.names for s in (SOURCE_SCHEMA, PROBE_SCHEMA, PLAN_SCHEMA, SAMPLE_SCHEMA))
    )
)
#: How `Corpus.ignored` counts files if their name, or the name of one of their folders, starts with a dot.
HIDDEN = "hidden"
NO_SUFFIX = "no suffix"
SPECIAL = "no regular file"
_CAPTIONS_AT_ONCE = 1024
#: Suffixes of the files beside a video or image that hold its caption; the first one there counts.
CAPTIONS = ("txt", "caption")
#: What a system says of a path that leads to no file.
_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
#: The longest caption: those of today's captioning models take some kB.
MAX_CAPTION_BYTES = 1 << 20
_SUFFIXES_SHOWN = 10
_NAMES_SHOWN = 3
#: Files by name, each with its size where it is known.
_Sizes = Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The table of sources.

    table: the columns of SOURCE_SCHEMA, then those of `keep`. folder: where relative paths in kept columns
    start, which is beside their own file: without a slash at its end; empty where these files are in
    several folders, or nothing says where they are. ignored: how many files of a folder or glob were
    neither media nor captions, by suffix; `hidden`: names that begin with `.`; `no regular file`: pipes,
    sockets and devices. parent: the cache whose clips they are, as it was read. notes: what else to say of
    the corpus, a sentence each.
    """

    table: pa.Table
    folder: str = ""
    keep: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    parent: Parent | None = None
    notes: tuple[str, ...] = ()


def read_corpus(config: CorpusConfig) -> Corpus:
    """Read the corpus: sources that are files are sorted by path, those of a table keep its order.

    Raises CorpusError, saying what to change, where there is nothing usable, and StorageError.
    """
    _check_keep(config)
    found = _read_any(with_weight_read(config))
    table = with_weights(found.table, config)
    kept = tuple(name for name in table.column_names if name not in SOURCE_SCHEMA.names)
    return replace(found, table=table, keep=kept)


def _read_any(config: CorpusConfig) -> Corpus:
    if is_cache_url(config.source):
        return _read_cache(config)
    if why := refused_scheme(config.source, config.schemes):
        raise CorpusError(f"corpus.source {redact_url(config.source)!r} {why}")
    try:
        return _read(config)
    except FileNotFoundError:
        raise CorpusError(
            f"corpus.source {redact_url(config.source)!r} is not there. Give an existing directory, "
            "glob, table (.csv, .jsonl, .json, .parquet), tar file or media file; a relative path "
            "starts at the current directory."
        ) from None
    except StorageError as error:
        raise type(error)(f"the corpus cannot be read: {error}") from error.__cause__


def _read_cache(config: CorpusConfig) -> Corpus:
    if config.columns:
        raise ConfigError(
            "corpus.columns names columns of a table, but corpus.source is a cache, which has its own. "
            "Remove corpus.columns"
        )
    table, keep, parent = read_clips(config)
    return Corpus(table=table, keep=keep, parent=parent)


def _read(config: CorpusConfig) -> Corpus:
    source, options = config.source, config.storage_options
    if is_directory(source, options):
        special: set[str] = set()
        sizes = find_sizes(source, options, special=special)
        corpus = _from_containers(config, source, list(sizes), is_glob=False)
        if corpus is None:
            # A caption among the special files is refused when it is read.
            texts = {**sizes, **dict.fromkeys(special)}
            corpus = _from_files(config, "a directory", source, list(sizes), texts)
        return _with_special(corpus, _shown(config, sorted(special)))
    if has_magic(source) and not is_file(source, options):
        base, names = glob_files(source, options)
        if corpus := _from_containers(config, base, names, is_glob=True):
            return corpus
        return _from_files(config, "a glob", base, names, _texts_beside(base, names, options))
    if suffix_of(source) in READERS:
        with open_table(source, config) as file:
            table = read_source_table(READERS[suffix_of(source)], file, config)
        return Corpus(table=table, folder=one_folder(absolute(source)), keep=tuple(config.keep))
    if not is_file(source, options):
        raise FileNotFoundError(source)
    if suffix_of(source) == TAR or is_compressed_tar(without_query(source)):
        name = without_query(source)[len(folder_of(source)) :]
        url = absolute(source)
        table, ignored = read_tars(config, [(name, url)])
        keep = tuple(config.keep)
        return Corpus(table=table, folder=one_folder(url), keep=keep, ignored=ignored)
    return _from_file(config)


def _from_containers(
    config: CorpusConfig, base: str, found: Sequence[str], *, is_glob: bool
) -> Corpus | None:
    """Make the table of sources in tar files or in tables among files; None if they hold none."""
    shown = _shown(config, found)
    _check_names(config.source, shown)
    what, names = containers(config.source, shown, is_glob=is_glob)
    files = [(name, join(absolute(base), name)) for name in names]
    ignored = _count_ignored(found, shown, set(names))
    if what == TAR:
        table, left = read_tars(config, files)
        ignored = dict(sorted((Counter(ignored) + Counter(left)).items()))
    elif what:
        table = read_tables(config, absolute(base), files)
    else:
        return None
    notes, folder = note_of_splits(base, shown, names), one_folder(*(url for _, url in files))
    keep = tuple(config.keep)
    return Corpus(table=table, folder=folder, keep=keep, ignored=ignored, notes=notes)


def _with_special(corpus: Corpus, names: Sequence[str]) -> Corpus:
    ignored = {**corpus.ignored, SPECIAL: len(names)} if names else corpus.ignored
    return replace(corpus, ignored=ignored)


def _shown(config: CorpusConfig, found: Sequence[str]) -> list[str]:
    return [n for n in found if not is_hidden(n) or is_hidden(config.source)]


def _from_file(config: CorpusConfig) -> Corpus:
    """Make the table of one file; a signed URL is good for the file itself, and not for its caption."""
    source, options = config.source, config.storage_options
    base, name = folder_of(source), without_query(source)
    texts: dict[str, int | None] = {}
    beside = [f"{posixpath.splitext(name)[0]}.{suffix}" for suffix in CAPTIONS]
    text = next((t for t in beside if name == source and is_file(t, options)), None)
    if text is not None:
        texts = {text[len(base) :]: file_facts(text, options).get("size")}
    corpus = _from_files(config, "one file", base, [name[len(base) :]], texts)
    url = source if is_url(source) else corpus.table["url"][0].as_py()
    index = corpus.table.schema.get_field_index("url")
    column = pa.array([url], pa.string())
    return replace(corpus, table=corpus.table.set_column(index, SOURCE_SCHEMA.field("url"), column))


def _check_keep(config: CorpusConfig) -> None:
    seen: set[str] = set()
    named = [("keep", name) for name in config.keep]
    named += [("per_frame", name) for name in config.per_frame]
    for key, name in named:
        if name in RESERVED or (key == "per_frame" and name in OWN):
            raise ConfigError(
                f"corpus.{key}: {name!r} is a column that the cache already has, with "
                f"its own meaning. Rename the column in your table, or remove it from corpus.{key}."
            )
        if name in seen:
            raise ConfigError(f"corpus.{key}: {name!r} is named twice; remove one.")
        seen.add(name)


def _from_files(
    config: CorpusConfig, what: str, base: str, found: Sequence[str], texts: _Sizes
) -> Corpus:
    """Make the table of the media among `found`; `texts` are the files that may be captions, with sizes."""
    for key in ("weight", "columns", "keep", "per_frame"):
        value = getattr(config, key)
        if value and (key != "weight" or isinstance(value, str)):
            raise ConfigError(
                f"corpus.{key} names columns of a table, but corpus.source "
                f"{redact_url(config.source)!r} is {what}. Remove corpus.{key}, or name a .csv, .jsonl "
                "or .parquet table as the source."
            )
    shown, root = _shown(config, found), absolute(base)
    kinds = _kinds(root, shown, config)
    media = list(kinds)
    _check_names(config.source, media)
    found_texts = sorted((n for n in texts if suffix_of(n) in CAPTIONS), key=_caption_rank)
    stems = {posixpath.splitext(n)[0]: n for n in found_texts}
    captions = {n: stems[s] for n in media if (s := posixpath.splitext(n)[0]) in stems}
    ignored = _count_ignored(found, shown, {*media, *captions.values()})
    if not media:
        raise _nothing_found(config.source, ignored)
    caption_of = _read_captions(root, captions, texts, config)
    columns = {
        "name": pa.array(media, pa.string()),
        "url": pa.array([join(root, name) for name in media], pa.string()),
        "kind": pa.array(list(kinds.values()), pa.string()),
        "caption": pa.array([caption_of.get(n) for n in media], pa.string()),
    }
    return Corpus(table=to_source_table(columns), folder=without_slash(root), ignored=ignored)


def _caption_rank(name: str) -> tuple[int, str]:
    """Return a key that sorts what is preferred to the end."""
    return -CAPTIONS.index(suffix_of(name)), name


def _kinds(root: str, names: Sequence[str], config: CorpusConfig) -> dict[str, str]:
    """Return the media among some files, in order, with their kinds: by suffix, or by content if asked."""
    known: dict[str, str] = {
        n: "image" if suffix_of(n) in IMAGES else "video" for n in names if is_media(n)
    }
    if config.no_suffix == "ignore":
        return known
    bare = [n for n in names if not suffix_of(n)]
    urls = [join(root, n) for n in bare]
    heads = read_heads(urls, HEAD_BYTES, config.storage_options)
    known |= {n: kind for n, head in zip(bare, heads, strict=True) if (kind := kind_of(head))}
    return {n: known[n] for n in names if n in known}


def is_hidden(path: str) -> bool:
    """Tell whether a part of a path starts with a dot, as macOS's `._a.mp4` does."""
    return any(p.startswith(".") and p.strip(".") for p in path.split("/"))


def _check_names(source: str, names: Sequence[str]) -> None:
    wrong = [name for name in names if not _is_utf8(name)]
    if wrong:
        shown = some_of([f"{name!a}" for name in wrong], _NAMES_SHOWN)
        raise CorpusError(
            f"{redact_url(source)}: the names of {len(wrong)} files are not UTF-8, so a table cannot hold "
            f"them: {shown}. Rename the files."
            if len(wrong) > 1
            else f"{redact_url(source)}: the file name {shown} is not UTF-8, so a table cannot hold it. "
            "Rename the file."
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count_ignored(found: Sequence[str], shown: Sequence[str], used: set[str]) -> dict[str, int]:
    suffixes = [suffix_of(n).encode(errors="replace").decode() for n in shown if n not in used]
    counts = Counter(f".{s}" if s else NO_SUFFIX for s in suffixes)
    if len(found) > len(shown):
        counts[HIDDEN] = len(found) - len(shown)
    return dict(sorted(counts.items()))


def _nothing_found(source: str, ignored: Mapping[str, int]) -> CorpusError:
    common = Counter(ignored).most_common(_SUFFIXES_SHOWN)
    seen = ", ".join(f"{suffix} ({n})" for suffix, n in common) or "no files at all"
    hint = ""
    if any(f".{table}" in ignored for table in READERS):
        hint = " To read a table, name the .csv, .jsonl or .parquet file itself."
    return CorpusError(
        f"corpus.source {redact_url(source)!r} holds no video and no image; seen: {seen}.{hint} "
        f"Files are known by their suffix: {' '.join(VIDEOS + IMAGES)}."
    )


def _texts_beside(base: str, names: Sequence[str], options: Mapping[str, object]) -> _Sizes:
    """List the folders of files that a glob matched, for captions that it did not match."""
    folders = sorted({posixpath.dirname(n) for n in names})
    texts: dict[str, int | None] = {}
    for folder in folders:
        special: set[str] = set()
        sizes = find_sizes(join(base, folder), options, max_depth=1, special=special)
        beside = {**sizes, **dict.fromkeys(special)}
        texts |= {
            posixpath.join(folder, n): s for n, s in beside.items() if suffix_of(n) in CAPTIONS
        }
    return texts


def _read_captions(
    root: str, captions: Mapping[str, str], sizes: _Sizes, config: CorpusConfig
) -> dict[str, str | None]:
    """Return the captions by name. sizes: those that listing has told."""
    for text in captions.values():
        _check_caption(join(root, text), sizes[text] or 0)
    names = list(captions)
    texts: dict[str, str | None] = {}
    for i in range(0, len(names), _CAPTIONS_AT_ONCE):
        some = names[i : i + _CAPTIONS_AT_ONCE]
        urls = [join(root, captions[n]) for n in some]
        data = _read_texts(urls, config.storage_options)
        texts.update((n, _caption(u, d)) for n, u, d in zip(some, urls, data, strict=True))
    return texts


def _read_texts(urls: Sequence[str], options: Mapping[str, object]) -> list[bytes]:
    try:
        special = [(url, what) for url in urls if (what := irregular(url, options))]
        if special:
            raise _special_captions(special)
        return read_many(urls, options, MAX_CAPTION_BYTES)
    except FileNotFoundError:
        gone = next((url for url in urls if not is_file(url, options)), urls[0])
    except StorageError:
        broken = next((url for url in urls if _is_broken_link(url, options)), None)
        if broken is None:
            raise
        gone = broken
    raise CorpusError(
        f"the caption file {redact_url(gone)} cannot be read: it was removed during planning, or is a "
        "broken link. Restore it, or remove it."
    )


def _is_broken_link(url: str, options: Mapping[str, object]) -> bool:
    """Tell whether a path leads to no file: to itself, through a file, or to a name that none can have."""
    try:
        irregular(url, options)
    except (FileNotFoundError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        return isinstance(cause, OSError) and cause.errno in _NOWHERE
    return False


def _special_captions(found: Sequence[tuple[str, str]]) -> CorpusError:
    (url, what), *others = found
    shown = ", ".join(redact_url(other) for other, _ in others[: _NAMES_SHOWN - 1])
    more = f"; {len(found)} caption files are no regular ones, such as {shown}" if others else ""
    return CorpusError(
        f"the caption file {redact_url(url)} is no regular file but a {what}, which may never end{more}. "
        "Remove it, or write the caption into a file."
    )


def _check_caption(url: str, num_bytes: int) -> None:
    if num_bytes > MAX_CAPTION_BYTES:
        raise CorpusError(
            f"the caption file {redact_url(url)} is larger than {human_bytes(MAX_CAPTION_BYTES)}, so it is "
            "no caption, and would be stored once per clip. Remove it, or shorten it."
        )


def _caption(url: str, data: bytes) -> str | None:
    _check_caption(url, len(data))
    try:
        return data.decode("utf-8-sig").strip() or None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"the caption file {redact_url(url)} is not UTF-8: {error}. Save it as UTF-8, or remove it."
        ) from None
