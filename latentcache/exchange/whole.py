"""An import of what an export wrote: it must be whole, and its files as they were written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import google_crc32c

from latentcache.core.lru import Lru
from latentcache.errors import CorpusError
from latentcache.exchange.clips import named
from latentcache.exchange.mark import MARK, Written, command_of, read_list, read_mark, sizes_in
from latentcache.exchange.records import Found, Record
from latentcache.storage.folder import Storage, join, redact

if TYPE_CHECKING:
    import torch

#: Bytes of a file that are in memory at a time.
PART_BYTES = 1 << 24
#: Files of which it is known whether they are as they were written: all of them.
MAX_CHECKED = 1 << 62


class WholeExport:
    """What an export wrote into a folder."""

    def __init__(self, source: Storage, files: Mapping[str, Written], command: str) -> None:
        self._source, self._files, self._command = source, files, command
        self._checked: Lru[str, bool] = Lru(MAX_CHECKED)

    def check_sizes(self) -> None:
        """Raise CorpusError unless all files are there, with as many bytes as were written."""
        found = sizes_in(self._source, self._files)
        differ = [path for path, size in found.items() if size != self._files[path].num_bytes]
        if differ:
            gone = sum(found[path] is None for path in differ)
            raise CorpusError(
                f"{redact(self._source.url)} is an export of {len(found)} files, of which {gone} are not "
                f"there and {len(differ) - gone} are not as long as they were: {named(differ)}. Nothing "
                f"was imported. Write them again with the same command: {self._command}. {_AS_IT_IS}"
            )

    def check_about(self) -> None:
        """Raise CorpusError unless the files that say what the others are are as they were written."""
        for path, file in self._files.items():
            if file.about and not self._is_same(path):
                raise CorpusError(
                    f"{self._differs(path)}, and run this again. Nothing was imported."
                )

    def checked(self, found: Found) -> Found:
        """Return clips that are loaded from files as they were written, or not at all: CorpusError.

        All files that something of a clip was read from count: its own, that of its caption, those beside.
        """
        records = [self._checked_record(record, found.beside) for record in found.records]
        return dataclasses.replace(found, records=records)

    def _checked_record(self, record: Record, of_all: Sequence[str]) -> Record:
        caption = record.caption_path
        beside = (caption,) if caption in self._files and caption else ()
        load = partial(self._load, record, (record.path, *beside, *of_all))
        return dataclasses.replace(record, load=load, beside=beside)

    def _load(self, record: Record, paths: Sequence[str]) -> torch.Tensor:
        for path in paths:
            if path not in self._files:  # it came later, and is a trainer's own
                continue
            if not self._checked.get_or_make(path, partial(self._is_same, path)):
                raise CorpusError(
                    f"{self._differs(path)}, and import the folder into another cache. What was imported "
                    "stays."
                )
        return record.load()

    def _is_same(self, path: str) -> bool:
        """Tell whether a file has the bytes that were written."""
        file, crc = self._files[path], 0
        for start in range(0, file.num_bytes, PART_BYTES):
            length = min(PART_BYTES, file.num_bytes - start)
            try:
                part = self._source.read_ranges(path, [(start, length)])[0]
            except FileNotFoundError:
                return False
            crc = google_crc32c.extend(crc, part)
        return crc == file.crc32c

    def _differs(self, path: str) -> str:
        return (
            f"{redact(join(self._source.url, path))} is not as it was exported: it is gone, or its bytes "
            f"fail their CRC32C. Remove the file, write it again with the same command, {self._command}"
        )


_AS_IT_IS = f"To import what is there as it is, remove {MARK} first."


def exported(source: Storage) -> WholeExport | None:
    """Return what an export wrote into a folder; None for one that no export wrote.

    Raises CorpusError for an export that is not whole.
    """
    url = redact(source.url)
    try:
        mark = read_mark(source)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorpusError(
            f"{url}/{MARK} is damaged: {error}. So it is not known whether the export in this folder is "
            f"whole. Nothing was imported. Export to another folder. {_AS_IT_IS}"
        ) from None
    command = command_of(mark, redact(source.absolute_url))
    try:
        whole = WholeExport(source, read_list(source), command)
    except (FileNotFoundError, ValueError):
        raise CorpusError(
            f"{url} is an export that was stopped, or that is still being written: no list of its files "
            "says that it is whole. Nothing was imported. Finish it with the same command: "
            f"{command}. {_AS_IT_IS}"
        ) from None
    whole.check_sizes()
    whole.check_about()
    return whole
