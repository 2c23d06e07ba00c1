"""A file system that cannot create on condition: `plain://` over local files, and jobs that know of it.

`python -m tests.tools.plain JOB ARGUMENTS` runs a job on it.
"""

from __future__ import annotations

import sys
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class PlainFileSystem(LocalFileSystem):
    """Local files under a name that is not known for creating on condition."""

    protocol = "plain"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(auto_mkdir=True, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("plain://").rstrip("/")


fsspec.register_implementation("plain", "tests.tools.plain.PlainFileSystem", clobber=True)


def main() -> int:
    """Run a job."""
    from tests.tools.caches import MAINS

    del sys.argv[0]
    return MAINS[sys.argv[0]]()


if __name__ == "__main__":
    sys.exit(main())
