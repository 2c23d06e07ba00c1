"""Which of the files of a folder or glob hold the sources: tar files, tables, or none of both. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence

from latentcache.corpus.source_table import IMAGES, VIDEOS
from latentcache.corpus.table_readers import READERS
from latentcache.corpus.tars import TAR
from latentcache.errors import CorpusError
from latentcache.storage.row_bytes import ARROW
from latentcache.storage.urls import folder_of, redact_url, suffix_of, without_file_scheme

_COMPRESSED = re.compile(r"(?i)\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$")
_PARQUET = "parquet"
_KEPT_BY_DATASETS = re.compile(r"(^|/)(cache|indices)-[^/]*$")


def is_media(name: str) -> bool:
    """Tell whether a file is a video or an image by its suffix."""
    return suffix_of(name) in VIDEOS + IMAGES


def is_compressed_tar(name: str) -> bool:
    """Tell whether a file is a compressed tar file by its suffixes."""
    return _COMPRESSED.search(name) is not None


def one_folder(*urls: str) -> str:
    """Return the folder that files are in, without a slash at its end; empty where they are in several."""
    folders = {folder_of(url) for url in urls}
    return without_slash(folders.pop()) if len(folders) == 1 else ""


def without_slash(folder: str) -> str:
    """Return a folder's path, or its URL if it is remote, without slashes at its end; a root stays."""
    folder = without_file_scheme(folder)
    bare = folder.rstrip("/")
    return folder if not bare or bare.endswith(":") else bare


def containers(
    source: str, names: Sequence[str], *, is_glob: bool
) -> tuple[str | None, Sequence[str]]:
    """Return the suffix of the files that hold the sources, and their names; None where no such file does.

    Where there are videos or images, those are the corpus. Next come tar files, beside which tables are
    what a downloader says of them; then Parquet tables, and tables of another kind where a glob names them.
    Raises CorpusError where some are compressed, or of several kinds.
    """
    if any(map(is_media, names)):
        return None, ()
    if packed := [n for n in names if is_compressed_tar(n)]:
        raise CorpusError(
            f"corpus.source {redact_url(source)!r} has the compressed tar file {packed[0]}, whose members "
            "cannot be read by themselves. Videos and images hardly shrink: expand it once (gunzip, "
            "bunzip2, unxz or unzstd), and give the .tar files."
        )
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        by_suffix.setdefault(suffix_of(name), []).append(name)
    if TAR in by_suffix:
        return TAR, by_suffix[TAR]
    if ARROW in by_suffix:  # beside which datasets keeps the results of its map
        by_suffix[ARROW] = [n for n in by_suffix[ARROW] if not _KEPT_BY_DATASETS.search(n)]
    if not is_glob:
        kind = next((kind for kind in (_PARQUET, ARROW) if by_suffix.get(kind)), None)
        return (kind, by_suffix[kind]) if kind else (None, ())
    tables = [suffix for suffix in by_suffix if suffix in READERS and by_suffix[suffix]]
    if len(tables) > 1:
        raise CorpusError(
            f"corpus.source {redact_url(source)!r} has tables of several kinds, such as "
            f"{by_suffix[tables[0]][0]} and {by_suffix[tables[1]][0]}. Name one kind: *.{tables[0]}."
        )
    return (tables[0], by_suffix[tables[0]]) if tables else (None, ())
