"""What a decoding process imports: each worker starts several, and again after each that was lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

#: Packages that take long to import, and that most decoding processes never need.
SLOW_TO_IMPORT = {"torch", "pyarrow", "zarr", "ray", "aiohttp", "s3fs", "scipy", "cv2", "diffusers"}


@pytest.mark.parametrize(
    "module", ["latentcache.decoders.process", "latentcache.storage.filesystems"]
)
def test_what_every_process_imports_is_imported_fast(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert module in printed.split()
    assert not SLOW_TO_IMPORT & set(printed.split())
