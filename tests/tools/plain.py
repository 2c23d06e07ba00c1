"""A file system that cannot create on condition: `plain://` over local files, and jobs that know of it.

`python -m tests.tools.plain JOB ARGUMENTS` runs a job on it.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class PlainFileSystem(LocalFileSystem):
    """Local files under a name that is not known for creating on condition. They appear whole."""

    protocol = "plain"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(auto_mkdir=True, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("plain://").rstrip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        target = Path(self._strip_protocol(path))
        if mode == "create" and target.exists():
            raise FileExistsError(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        part.write_bytes(value)
        part.replace(target)


fsspec.register_implementation("plain", "tests.tools.plain.PlainFileSystem", clobber=True)


def main() -> int:
    """Run a job."""
    from tests.tools.caches import main_of

    del sys.argv[0]
    return main_of(sys.argv[0])()


if __name__ == "__main__":
    sys.exit(main())
