"""The benchmark of encoders on a GPU runs whole without one, with tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_loader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),  # a C++ compiler runs for each kernel
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # of torch's own imports
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_the_benchmark_runs_whole_on_a_cpu_and_writes_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu.BEGIN}\n{gpu.END}\nafter\n")
    gpu.main(["--write", "--page", str(page), "--minutes", "2"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for name in gpu.TINY:
        compiled = name == gpu.TINY_COMPILED
        ways = len(gpu.WAYS) - (not compiled)
        workers = len(gpu.TINY_WORKERS) if compiled else 1
        rows = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert len(rows) == ways * len(gpu.TINY_BATCHES) + len(gpu.TINY_SIZES) + workers - 1
    for name in gpu_loader.STORED:
        assert len([line for line in text.splitlines() if line.startswith(f"| {name} |")]) == 1
    assert re.search(r"Tests that need a GPU: .*\d+ passed, \d+ skipped", text)
    assert "no memory" not in text
