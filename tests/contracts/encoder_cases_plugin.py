from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case

PAGE = Path(__file__).parents[2] / "docs" / "encoder-plugins.md"


def example() -> str:
    """Return the code on the page about encoders outside this project."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(code)


def _raw(folder: Path) -> dict[str, Any]:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "grey.py").write_text(example())
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    return {"kind": "my_package.grey:build", "levels": 8}


CASES = (
    Case(
        name="plugin",
        kind="my_package.grey:build",
        raw=_raw,
        frames=(1, 2, 5),
        rounding=0.0,
        is_network=False,
    ),
)
