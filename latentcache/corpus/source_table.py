"""Step 1 of the data flow, from a table: its columns by role become the table of sources.

Columns stay in Arrow, so millions of rows do not become Python objects.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.sections import CorpusConfig
from latentcache.core.columns import replaced
from latentcache.core.names import may_repeat
from latentcache.corpus.column_types import is_list_of_text, is_text
from latentcache.corpus.kept import keepable
from latentcache.corpus.repeats import Mask, first_unlike, number_repeated, same_place
from latentcache.corpus.wanted import Wanted
from latentcache.errors import CorpusError
from latentcache.format.per_frame import PER_FRAME, stored_type, struct_of
from latentcache.format.schemas import SOURCE_SCHEMA
from latentcache.storage.parts import PREFIX
from latentcache.storage.spill import Spill
from latentcache.storage.urls import (
    CREDENTIALS,
    QUERIES,
    RELATIVE_QUERIES,
    SOURCE_SCHEMES,
    USERS,
    folder_of,
    is_http,
    is_url,
    redact_url,
    refused_scheme,
)

IMAGES = (
    *("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff"),
    *("avif", "heic", "heif", "jxl"),  # what reads these may be missing: see decoders.image
)
VIDEOS = (
    *("mp4", "mov", "qt", "mkv", "webm", "avi", "m4v", "mpg", "mpeg", "vob"),
    *("ts", "mts", "m2ts", "flv", "f4v", "wmv", "asf", "gif", "y4m", "ogv", "3gp"),
)
#: Rows of a table that become sources together.
CHUNK_ROWS = 1 << 16
NUMBERS = ("frames", "fps", "height", "width")
#: The kept column of sources with several captions each.
SEVERAL = "captions"
#: Paths that do not start at the table's folder.
ABSOLUTE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*(://|::))"
#: What most rows are, which need no second look.
_USUAL = rf"(?i)^(/|({'|'.join(sorted(SOURCE_SCHEMES))})://)"
#: The URL of a file in a row of a table: see `storage.parts`.
_IN_ROW = r"(?s)^row://[^/:?#]+/(?P<row>\d+)(?:\.[A-Za-z0-9]+)?::(?P<file>.+)$"
_DOTS = r"(^|/)\.\.?(/|$)"
_PROBED = "Correct it, or leave it empty to have the source probed"


def read_source_table(
    reader: Callable[[IO[bytes], Wanted], pa.Table], file: IO[bytes], config: CorpusConfig
) -> pa.Table:
    """Read a table and return its rows as sources. Raises CorpusError."""
    url = absolute(config.source)
    return to_sources(reader(file, wanted_of(config, url)), config, folder_of(url))


def absolute(place: str) -> str:
    """Return a URL, or a path as it is from the root."""
    return place if is_url(place) else str(Path(place).expanduser().absolute())


def roles_of(config: CorpusConfig) -> Mapping[str, str]:
    """Return which column of a table holds what."""
    return config.columns or {"video": "video", "caption": "caption"}


def wanted_of(config: CorpusConfig, url: str, where: str = "") -> Wanted:
    """Return the columns to read of a table. where: what messages call it, if not the corpus."""
    roles = roles_of(config)
    optional = () if config.columns else ("caption",)
    required = [c for c in roles.values() if c not in optional]
    return Wanted(
        where=where or redact_url(config.source),
        url=url,
        media=frozenset(roles[r] for r in ("video", "image") if r in roles),
        required=tuple(dict.fromkeys([*required, *config.keep, *config.per_frame])),
        optional=optional,
        text=frozenset(c for r, c in roles.items() if r not in NUMBERS or c not in config.keep),
        texts=roles.get("caption"),
    )


def to_sources(
    data: pa.Table,
    config: CorpusConfig,
    folder: str,
    starts: Sequence[tuple[int, str]] = (),
) -> pa.Table:
    """Return the rows of a table as sources. Raises CorpusError.

    folder: where relative paths start. starts: of a table in several files the first row of each, and what
    messages call it.
    """
    where, roles = redact_url(config.source), roles_of(config)
    if not data.num_rows:
        raise CorpusError(f"{where} has no rows. Give a table with one row per video or image.")
    roles = {role: column for role, column in roles.items() if column in data.column_names}
    columns = _columns(where, data, roles, config, folder, starts)
    rows = Rows(where, data, roles, starts)
    paths = {roles.get("video"), roles.get("image")}
    kept = {c: keepable(c, data[c]) for c in config.keep}
    kept |= {c: rows.public(kept[c], folder) for c in config.keep if c in paths}
    kept = {**rows.captions(), **kept}
    if config.per_frame:
        kept[PER_FRAME] = struct_of({c: _per_frame(where, c, data[c]) for c in config.per_frame})
    return to_source_table(columns, kept)


def _columns(
    where: str,
    data: pa.Table,
    roles: Mapping[str, str],
    config: CorpusConfig,
    folder: str,
    starts: Sequence[tuple[int, str]],
) -> dict[str, pa.ChunkedArray]:
    """Return the columns of the table of sources, made some rows at a time. Raises CorpusError."""
    spill = Spill()
    tables, given = list[pa.Table](), list[pa.Array]()
    for first in range(0, data.num_rows, CHUNK_ROWS):
        rows = Rows(where, data.slice(first, CHUNK_ROWS), roles, starts, first=first)
        path, kind = rows.paths()
        full = rows.names(path, folder)
        columns = {
            "name": rows.public(full, folder),
            "url": rows.allowed(rows.urls(path, folder), config.schemes),
            "kind": kind,
            "caption": rows.caption(),
            **{role: rows.number(role) for role in NUMBERS},
        }
        tables.append(spill.put(pa.table(columns)))
        is_public = columns["name"] is full
        given += (tables[-1]["name"] if is_public else spill.column(full)).chunks
    table = pa.concat_tables(tables)
    names, full = table["name"], pa.chunked_array(given, pa.string())
    is_repeated = may_repeat(names)
    if is_repeated.any():
        Rows(where, data, roles, starts).refuse_alike(names, full, table["url"], is_repeated)
        names = spill.column(number_repeated(names))
    return {**dict(zip(table.column_names, table.columns, strict=True)), "name": names}


def _per_frame(where: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with a value per frame. Raises CorpusError if it holds something else."""
    if stored_type(column.type) is None:
        raise CorpusError(
            f"{where}: column {name!r} of corpus.per_frame holds {column.type}, and should hold a list of "
            "numbers, or of vectors of numbers: one per frame of the source. Give the lists in a .parquet "
            "or .jsonl table, or keep the column as it is with corpus.keep."
        )
    return column


def to_source_table(
    columns: Mapping[str, Any], kept: Mapping[str, pa.ChunkedArray] | None = None
) -> pa.Table:
    """Return a table with the columns of SOURCE_SCHEMA, null if not given, then the kept ones."""
    num_rows = len(columns["name"])
    made = [columns.get(f.name, pa.nulls(num_rows, f.type)) for f in SOURCE_SCHEMA]
    extra = dict(kept or {})
    schema = pa.schema([*SOURCE_SCHEMA, *(pa.field(n, c.type) for n, c in extra.items())])
    return pa.table([*made, *extra.values()], schema=schema)


@dataclass(frozen=True)
class Rows:
    """The rows of a table; every method returns a column of the table of sources.

    starts: as of `to_sources`. row_word: what a row is in messages. first: the number of the first row.
    """

    where: str
    data: pa.Table
    roles: Mapping[str, str]
    starts: Sequence[tuple[int, str]] = ()
    row_word: str = "row"
    first: int = 0

    @property
    def path_role(self) -> str:
        """The role of the column of paths: video, if there is one."""
        return "video" if "video" in self.roles else "image"

    def text(self, role: str, required: bool = False) -> pa.ChunkedArray:
        """Return the role's column as strings; null if it is empty or the role is not mapped."""
        if role not in self.roles:
            return pa.chunked_array([pa.nulls(self.data.num_rows, pa.string())])
        given = self.data[self.roles[role]]
        column = None if pa.types.is_nested(given.type) else _cast(given, pa.string())
        if column is None:
            raise CorpusError(
                f"{self.where}: column {self.roles[role]!r} (role {role}) holds {given.type}, not "
                "text. Name a column of text in corpus.columns."
            )
        column = _null_where(pc.equal(column, ""), column)
        if required:
            self.refuse(pc.is_null(column), role, "is empty: every source needs one")
        return column

    def caption(self) -> pa.ChunkedArray:
        """Return the captions as strings: of lists the first text that is not empty."""
        given = self.data[self.roles["caption"]] if "caption" in self.roles else None
        if given is None or not is_list_of_text(given.type):
            return self.text("caption")
        firsts = [next(filter(None, some or ()), None) for some in given.to_pylist()]
        return pa.chunked_array([pa.array(firsts, pa.string())])

    def captions(self) -> dict[str, pa.ChunkedArray]:
        """Return the kept column of several captions per source, if the caption's column holds lists."""
        given = self.data[self.roles["caption"]] if "caption" in self.roles else None
        if given is None or not is_list_of_text(given.type):
            return {}
        return {SEVERAL: given.cast(pa.list_(pa.string()))}

    def paths(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Return paths and kinds: with two columns the filled one gives the kind, else the suffix does."""
        role = self.path_role
        path = self.text(role)
        if "image" in self.roles and self.roles["image"] != self.roles[role]:
            image = self.text("image")
            both = pc.and_(pc.is_valid(path), pc.is_valid(image))
            self.refuse(both, role, "is set, and so is the image: a row is one source. Empty one")
            kind = pc.if_else(pc.is_valid(path), "video", "image")
            path = pc.coalesce(path, image)
        else:
            other, suffixes = ("image", IMAGES) if role == "video" else ("video", VIDEOS)
            ends = "|".join(suffixes)
            pattern = rf"(?i)({PREFIX}\.({ends})::|\.({ends})([?#].*)?$)"
            kind = pc.if_else(pc.match_substring_regex(path, pattern), other, role)
        self.refuse(pc.is_null(path), role, "is empty: every source needs a path")
        return path, kind

    def names(self, path: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
        """Return what sources are known by, with the secrets of URLs: their keys, else their paths."""
        if "key" in self.roles:
            return self.text("key", required=True)
        return self._rows_named(path, folder)

    def refuse_alike(
        self, names: pa.ChunkedArray, given: pa.ChunkedArray, urls: pa.ChunkedArray, among: Mask
    ) -> None:
        """Raise CorpusError for a row whose name is that of another source.

        A number would depend on the order of the rows, and a digest of a signature changes with every
        signing. names: without, given: with what they leave out of URLs. among: where names may be
        repeated.
        """
        role = "key" if "key" in self.roles else self.path_role
        if (row := first_unlike(names, given, among)) is not None:
            why = (
                "differs from an earlier row only in the query or the user of its URL, which names "
                "leave out, since they may be secrets. Add a column of unique names to the table, "
                "and name it as the role `key` in corpus.columns"
            )
            raise self.error(role, row, why)
        if (row := first_unlike(names, urls, among, same_place)) is not None:
            why = (
                "is also the key of an earlier row, of another place, and a number would depend on the "
                "order of the rows. Give each video or image its own key; one with several captions can be "
                "one row, with a list of them"
            )
            raise self.error(role, row, why)

    def _rows_named(self, path: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
        """Return paths, of which files in rows of tables are called `TABLE/ROW`, rows counted from 0."""
        found = pc.extract_regex(path, _IN_ROW)
        if found.null_count == len(found):
            return path
        file = self.public(pc.struct_field(found, "file"), folder)
        start = absolute(folder).rstrip("/") + "/"
        inner = pc.utf8_slice_codeunits(file, len(start))
        file = pc.if_else(pc.starts_with(file, start), inner, file)
        names = pc.binary_join_element_wise(file, pc.struct_field(found, "row"), "/")
        return pc.if_else(pc.is_valid(found), names, path)

    def public(self, column: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
        """Return URLs, and paths relative to `folder`, without query and credentials."""
        if not is_text(column.type):
            return column
        if pa.types.is_dictionary(column.type) or pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        relative = RELATIVE_QUERIES if is_http(folder) else ()
        for pattern, kept in (*QUERIES, *USERS, *relative):
            if pc.any(pc.match_substring_regex(column, pattern)).as_py():
                column = pc.replace_substring_regex(column, pattern, kept)
        return column

    def urls(self, path: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
        """Return the URLs of the paths; relative ones start at `folder`, the table's own."""
        self.refuse(
            pc.match_substring_regex(path, CREDENTIALS),
            self.path_role,
            "carries a password, which the cache would store. Remove it, and give credentials in "
            "corpus.storage_options or in the environment",
        )
        if not is_url(folder):
            folder = f"{Path(folder).expanduser().absolute()}".rstrip("/") + "/"
        absolute = pc.match_substring_regex(path, ABSOLUTE)
        if pc.any(pc.starts_with(path, "./")).as_py():
            url = pc.replace_substring_regex(path, r"^(\./)+", "")
            url = pc.binary_join_element_wise(folder, url, "")
        else:
            url = pc.binary_join_element_wise(folder, path, "")
        if pc.any(absolute).as_py():
            url = pc.if_else(absolute, path, url)
        if not is_url(folder):
            return url
        # Only a local file system resolves `..` by itself; an object store takes it for a name.
        dotted = pc.and_not(pc.match_substring_regex(path, _DOTS), absolute)
        if not pc.any(dotted).as_py():
            return url
        resolved = [resolve(folder, p) for p in path.filter(dotted).to_pylist()]
        return replaced(url, np.asarray(dotted.to_numpy(), bool), resolved)

    def allowed(self, urls: pa.ChunkedArray, named: Sequence[str]) -> pa.ChunkedArray:
        """Return the URLs. Refuses those that the configuration does not allow."""
        is_chain = pc.match_substring(urls, "::")
        usual = pc.and_not(pc.match_substring_regex(urls, _USUAL), is_chain)
        for row in np.flatnonzero(pc.invert(usual).to_numpy()).tolist():
            if why := refused_scheme(urls[row].as_py(), named):
                raise self.error(self.path_role, row, why)
        return urls

    def number(self, role: str) -> pa.ChunkedArray:
        """Return the role's column as SOURCE_SCHEMA has it; null if it must be probed."""
        kind = SOURCE_SCHEMA.field(role).type
        if role not in self.roles:
            return pa.chunked_array([pa.nulls(self.data.num_rows, kind)])
        column = self._floats(role)
        column = _null_where(pc.is_nan(column), column)
        good = pc.and_(pc.greater(column, 0), pc.less(column, 2.0**31))
        if role == "fps":
            self.refuse(pc.invert(good), role, f"is not a number above 0. {_PROBED}")
        else:
            good = pc.and_(good, pc.equal(column, pc.floor(column)))
            self.refuse(pc.invert(good), role, f"is not a whole number above 0. {_PROBED}")
        return column.cast(kind)

    def _floats(self, role: str) -> pa.ChunkedArray:
        given = self.data[self.roles[role]]
        column = given
        if is_text(given.type):
            column = given.cast(pa.string())
            column = pc.utf8_trim_whitespace(column)
            column = _null_where(pc.equal(column, ""), column)
        elif pa.types.is_boolean(given.type) or pa.types.is_nested(given.type):
            raise CorpusError(
                f"{self.where}: column {self.roles[role]!r} (role {role}) holds {given.type}, not "
                f"numbers. Name a column of numbers, or remove the role: sources are probed then."
            )
        floats = _cast(column, pa.float64())
        if floats is None:
            wrong = (i for i, value in enumerate(column) if _cast(value, pa.float64()) is None)
            raise self.error(role, next(wrong), f"is not a number. {_PROBED}")
        return floats

    def refuse(self, bad: pa.ChunkedArray, role: str, why: str) -> None:
        """Raise CorpusError for the first row at which `bad` is true."""
        row = pc.index(bad, True).as_py()
        if row >= 0:
            raise self.error(role, row, why)

    def error(self, role: str, row: int, why: str) -> CorpusError:
        """Return the CorpusError about one row's value."""
        value = self.data[self.roles[role]][row].as_py()
        shown = repr(redact_url(value) if isinstance(value, str) else value)[:200]
        row += self.first
        start, where = max([s for s in self.starts if s[0] <= row], default=(0, self.where))
        return CorpusError(
            f"{where}: {self.row_word} {row - start + 1} (of the data, counted from 1): "
            f"{self.roles[role]} = {shown} {why}."
        )


def _cast(values: Any, kind: pa.DataType) -> Any:
    """Return `values` in another type, or None if one of them cannot be cast."""
    try:
        return values.cast(kind)
    except pa.ArrowException:
        return None


def _null_where(mask: pa.ChunkedArray, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with nulls at the rows at which `mask` is true; the column itself if nowhere."""
    if not pc.any(mask).as_py():
        return column
    return pc.if_else(mask, pa.scalar(None, column.type), column)


def resolve(folder: str, path: str) -> str:
    """Return the URL of a path relative to a folder's, with `.` and `..` resolved within the bucket."""
    scheme, _, rest = folder.partition("://")
    bucket, _, inner = rest.partition("/")
    return f"{scheme}://{bucket}{posixpath.normpath('/' + posixpath.join(inner, path))}"
