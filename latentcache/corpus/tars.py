"""Tar files of samples as a corpus, as WebDataset has them: each sample's video or image is a source.

Nothing is unpacked: a source is a range of bytes of its tar file, and a member's name is only a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any, cast

import pyarrow as pa

from latentcache.config.sections import CorpusConfig
from latentcache.core.json_text import parse_json
from latentcache.core.units import human_bytes
from latentcache.corpus.kept import keepable
from latentcache.corpus.source_table import (
    IMAGES,
    NUMBERS,
    VIDEOS,
    Rows,
    to_source_table,
)
from latentcache.corpus.table_files import refuse_irregular
from latentcache.corpus.tar_members import Member, read_members
from latentcache.errors import ConfigError, CorpusError
from latentcache.redaction import printable
from latentcache.storage.parts import ByteRange
from latentcache.storage.source_files import open_source
from latentcache.storage.urls import redact_url

#: The suffix of what is read here.
TAR = "tar"
#: Tar files that are listed at a time: of remote ones each member costs a request.
NUM_THREADS = 16
#: What is read of a remote tar file around each header: some images at once, little of a video.
_BLOCK_BYTES = 1 << 16
#: Members that hold a caption, the first that a sample has; then the field of its .json.
_CAPTIONS = ("txt", "caption")
_CAPTION_FIELD = "caption"
_MAX_TEXT_BYTES = 1 << 20
_MAX_JSON_BYTES = 16 << 20
#: How WebDataset splits a member's name: a sample's members have the same part before the first dot.
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]+)", re.S)
#: How `ignored` counts members that are no files, and hidden ones.
_NO_FILE, _HIDDEN, _NO_SUFFIX = "links in tars", "hidden", "no suffix"


@dataclass
class _Sample:
    """Members with the same stem, by suffix. texts: what those hold that are read."""

    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wanted:
    """What to take of samples. media: suffixes by role, or None for all that are known."""

    media: Mapping[str, str] | None
    caption: str | None
    numbers: Mapping[str, str]
    keep: Sequence[str]

    @property
    def fields(self) -> set[str]:
        """The fields of a sample's .json to hold."""
        return {self.caption or _CAPTION_FIELD, *self.numbers.values(), *self.keep}

    def is_text(self, suffix: str) -> bool:
        """Tell whether members of a suffix are read as text."""
        return suffix in _CAPTIONS if self.caption is None else suffix == self.caption

    def media_of(self, sample: _Sample) -> list[tuple[str, str]]:
        """Return kind and suffix of the videos and images of a sample."""
        if self.media is not None:
            return [(role, s) for role, s in self.media.items() if s in sample.members]
        return [(kind, s) for s in sample.members if (kind := _kind(s))]


def read_tars(
    config: CorpusConfig, tars: Sequence[tuple[str, str]]
) -> tuple[pa.Table, dict[str, int]]:
    """Return the sources in tar files, in their order, and how many members were left out, by suffix.

    tars: name and URL of each. A source is called by its tar file's name and its sample's. Raises
    ConfigError, CorpusError, FileNotFoundError and StorageError.
    """
    wanted = _wanted(config)
    ignored: Counter[str] = Counter()
    tables, fields = [], set[str]()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for table, left, there in pool.map(lambda tar: _read_tar(config, wanted, *tar), tars):
            ignored.update(left)
            tables.append(table)
            fields |= there
    table = _joined(tables, [url for _, url in tars])
    table = _keepable(table, config.keep, fields)
    if not table.num_rows:
        seen = ", ".join(f"{s} ({n})" for s, n in ignored.most_common(10)) or "no files at all"
        raise CorpusError(
            f"corpus.source {redact_url(config.source)!r}: the tar files hold no video and no image"
            + (" of the suffixes in corpus.columns" if wanted.media is not None else "")
            + f"; seen: {seen}. Members are known by their suffix, such as 0001.mp4 with 0001.txt"
        )
    return table, dict(sorted(ignored.items()))


def _wanted(config: CorpusConfig) -> _Wanted:
    for key, names in (
        ("per_frame", config.per_frame),
        ("columns", (config.columns or {}).keys() & {"key"}),
    ):
        if names:
            raise ConfigError(
                f"corpus.{key}: tar files cannot have {sorted(names)[0]!r}: their sources are called by "
                "tar file and sample, and have no values per frame. Remove it, or give a .parquet table"
            )
    roles = dict(config.columns or {})
    media: dict[str, str] = {
        role: roles.pop(role).lower().lstrip(".") for role in ("video", "image") if role in roles
    }
    return _Wanted(
        media or None,
        roles.pop("caption", None),
        {role: name for role, name in roles.items() if role in NUMBERS},
        config.keep,
    )


def _read_tar(
    config: CorpusConfig, wanted: _Wanted, name: str, url: str
) -> tuple[pa.Table, Counter[str], set[str]]:
    """Return the sources in a tar file, what was left out, and which wanted fields any .json has."""
    where, ignored = redact_url(url), Counter[str]()
    refuse_irregular(url, config)
    options = config.storage_options
    with open_source(url, options, for_parts=True, block_bytes=_BLOCK_BYTES) as file:
        samples = _samples(file, where, wanted, ignored)
    names, sources, kinds, used = [], [], [], []
    for stem, sample in samples.items():
        media = wanted.media_of(sample)
        if len(media) > 1:
            raise _several(where, stem, media)
        taken = {s for _, s in media} | ({*sample.texts, "json"} if media else set())
        ignored.update(f".{s}" for s in sample.members if s not in taken)
        for kind, suffix in media:
            member = sample.members[suffix]
            part = ByteRange(
                file=url, offset=member.offset, size=member.size, suffix=suffix.rpartition(".")[2]
            )
            names.append(f"{name}/{stem}")
            sources.append(part.url)
            kinds.append(kind)
            used.append(sample)
    there = {name for sample in used for name in sample.facts}
    return _table(where, wanted, names, sources, kinds, used), ignored, there


def _several(where: str, stem: str, media: Sequence[tuple[str, str]]) -> CorpusError:
    suffixes = [suffix for _, suffix in media]
    return CorpusError(
        f"{where}: the sample {printable(stem)} has {len(media)} videos and images "
        f"({', '.join(printable(s) for s in suffixes[:5])}), and a sample is one source. Say which: "
        f"corpus.columns={{{media[0][0]}: {printable(suffixes[0])}}}"
    )


def _samples(
    file: IO[bytes], where: str, wanted: _Wanted, ignored: Counter[str]
) -> dict[str, _Sample]:
    """Return the samples of a tar file by stem, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for member in read_members(file, where):
        name = member.name.removeprefix("./")
        if not member.is_file:
            ignored[_NO_FILE] += 1
            continue
        if any(p.startswith(".") and p.strip(".") for p in name.split("/")):
            ignored[_HIDDEN] += 1
            continue
        split = _NAME.fullmatch(name)
        if split is None:
            ignored[_NO_SUFFIX] += 1
            continue
        stem, suffix = split[1], split[2].lower()
        sample = samples.setdefault(stem, _Sample())
        if suffix in sample.members:
            raise CorpusError(
                f"{where}: {printable(name)} is in it twice, so nothing says which of the two counts. "
                "Write the tar file again, with each name once."
            )
        sample.members[suffix] = member
        if suffix == "json":
            sample.facts = _facts(file, where, member, wanted)
        elif wanted.is_text(suffix):
            sample.texts[suffix] = _text(file, where, member)
    return samples


def _text(file: IO[bytes], where: str, member: Member, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    if member.size > max_bytes:
        raise CorpusError(
            f"{where}: {printable(member.name)} is larger than {human_bytes(max_bytes)}, so it is no "
            "caption and no description of a sample. Leave it out of the tar file, or name the member "
            "with the caption: corpus.columns={video: mp4, caption: txt}"
        )
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: {printable(member.name)} is not UTF-8: {error}. Save it as UTF-8, or leave it out."
        ) from None


def _facts(file: IO[bytes], where: str, member: Member, wanted: _Wanted) -> Mapping[str, Any]:
    """Return the wanted fields of a sample's .json; none where it is no object."""
    try:
        found = parse_json(_text(file, where, member, _MAX_JSON_BYTES))
    except ValueError as error:
        raise CorpusError(
            f"{where}: {printable(member.name)} is not JSON: {error}. Correct it, or leave it out."
        ) from None
    return {k: found[k] for k in wanted.fields if k in found} if isinstance(found, dict) else {}


def _kind(suffix: str) -> str | None:
    last = suffix.rpartition(".")[2]
    return "video" if last in VIDEOS else "image" if last in IMAGES else None


def _caption(sample: _Sample, wanted: _Wanted) -> Any:
    for suffix in _CAPTIONS if wanted.caption is None else (wanted.caption,):
        if suffix in sample.texts:
            return sample.texts[suffix].strip() or None
    value = sample.facts.get(wanted.caption or _CAPTION_FIELD)
    if wanted.caption is None and not isinstance(value, str | list):
        return None
    return (value.strip() or None) if isinstance(value, str) else value


def _alike(captions: list[Any]) -> list[Any]:
    """Return captions of samples as lists, if one of them is a list of texts."""
    if not any(isinstance(caption, list) for caption in captions):
        return captions
    return [c if isinstance(c, list) or c is None else [c] for c in captions]


def _table(
    where: str,
    wanted: _Wanted,
    names: list[str],
    urls: list[str],
    kinds: list[str],
    samples: Sequence[_Sample],
) -> pa.Table:
    facts = {name: [s.facts.get(name) for s in samples] for name in wanted.fields}
    given = {role: _column(where, name, facts[name]) for role, name in wanted.numbers.items()}
    given["caption"] = _column(where, "caption", _alike([_caption(s, wanted) for s in samples]))
    rows = Rows(where, pa.table(given), {role: role for role in given}, row_word="sample")
    columns = {
        "name": pa.array(names, pa.string()),
        "url": pa.array(urls, pa.string()),
        "kind": pa.array(kinds, pa.string()),
        "caption": rows.caption(),
        **{role: rows.number(role) for role in NUMBERS},
    }
    kept = {name: pa.chunked_array([_column(where, name, facts[name])]) for name in wanted.keep}
    return to_source_table(columns, {**rows.captions(), **kept})


def _column(where: str, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        raise CorpusError(
            f"{where}: {name!r} has values of several types in its .json members. Make them the same type, "
            "such as a number in all of them."
        ) from None


def _joined(tables: Sequence[pa.Table], urls: Sequence[str]) -> pa.Table:
    """Put the tables of tar files together; kept columns have one type. Raises CorpusError."""
    try:
        return cast(pa.Table, pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException:
        raise _other_types(tables, urls) from None


def _keepable(table: pa.Table, keep: Sequence[str], fields: Collection[str]) -> pa.Table:
    """Return a table with kept columns as they are stored. fields: that any .json has, if only as null.

    Raises CorpusError.
    """
    for name in keep:
        if table.num_rows and name not in fields:
            raise CorpusError(
                f"corpus.keep: no .json of the tar files has {name!r}. Correct the name, or remove it."
            )
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, keepable(name, table[name]))
    return table


def _other_types(tables: Sequence[pa.Table], urls: Sequence[str]) -> CorpusError:
    """Return the error about the first table whose types do not go with those before it."""
    schema = tables[0].schema
    for table, url in zip(tables, urls, strict=True):
        try:
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            return CorpusError(
                f"{redact_url(url)}: a field of corpus.keep has another type than in the tar files before "
                f"it ({error}). Make it the same type in all of them, or remove it from corpus.keep."
            )
    raise AssertionError("unreachable: one of the tables does not go with the others")
