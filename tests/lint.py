"""The linters, each as a command: `python -m tests.lint`. The long tests run them, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SITE = ROOT / ".site"
LINTERS = {
    "ruff": [BIN / "ruff", "check", "."],
    "format": [BIN / "ruff", "format", "--check", "."],
    "mypy": [BIN / "mypy"],
    "imports": [BIN / "lint-imports"],
    "site": [BIN / "mkdocs", "build", "--strict", "--quiet", "--site-dir", SITE],
}


def run(name: str) -> tuple[int, str]:
    """Run one linter; returns its exit status and what it printed."""
    done = subprocess.run(LINTERS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Run them all; returns 1 where one complains."""
    failed = 0
    for name in LINTERS:
        status, output = run(name)
        print(f"{name}: {'ok' if status == 0 else output}", flush=True)
        failed |= status
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
