"""Where on this machine a URL or a path leads, and whether what is written there stays."""

from __future__ import annotations

import os
from pathlib import Path

from latentcache.errors import ConfigError
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.urls import LOCAL_SCHEMES, links_of, redact_url, scheme_of

#: The folder in which Ray unpacks the files of each submitted job into a folder, where it runs the job.
_JOB_FOLDERS = "working_dir_files"


def local_place(url: str) -> Path | None:
    """Return the folder or file of this machine that a URL or a path leads to, without links; else None."""
    innermost = links_of(url)[-1]
    if scheme_of(innermost) not in LOCAL_SCHEMES:
        return None
    return Path(os.path.realpath(open_filesystem(innermost)[1]))


def check_new_place(url: str, setting: str) -> None:
    """Raise ConfigError if what is written to `url` would be lost: in the folder of this Ray job.

    setting: where the URL was given, for the message.
    """
    place = local_place(url)
    folder = None if place is None else _job_folder()
    if place is not None and folder is not None and place.is_relative_to(folder):
        raise ConfigError(
            f"{setting} {redact_url(url)!r} is in the folder of this Ray job ({folder}). Ray removes it, "
            "and what is written there would be lost. Nothing was written. Give an absolute path "
            "elsewhere, or a URL, that all machines share."
        )


def _job_folder() -> Path | None:
    """Return the folder that Ray has made for this job, None outside of a job."""
    parts = Path.cwd().parts
    if _JOB_FOLDERS not in parts[:-1]:
        return None
    return Path(*parts[: parts.index(_JOB_FOLDERS) + 2])
