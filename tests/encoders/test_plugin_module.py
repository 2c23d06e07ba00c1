"""`latentcache.plugin`: all that an encoder of one's own imports, documented, and light."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

from latentcache import plugin
from tests.contracts.encoder_cases_plugin import PAGE, example

#: What an encoder's module has no business with, and would wait for.
HEAVY = ("av", "decord", "diffusers", "fsspec", "pyarrow", "ray", "transformers", "zarr")


def test_the_page_documents_every_name_and_no_other() -> None:
    _, _, table = PAGE.read_text().partition("## What the module exports")
    documented = {
        word
        for line in table.splitlines()
        if line.startswith("| `")
        for word in line.split("|")[1].replace("`", "").replace(",", " ").split()
    }
    assert documented == set(plugin.__all__)


def test_the_example_imports_nothing_else_of_latentcache() -> None:
    modules = {
        node.module for node in ast.walk(ast.parse(example())) if isinstance(node, ast.ImportFrom)
    }
    assert {name for name in modules if name and name.startswith("latentcache")} == {
        "latentcache.plugin"
    }


def test_every_export_says_what_it_is() -> None:
    for name in plugin.__all__:
        assert inspect.getdoc(getattr(plugin, name)), name


@pytest.mark.slow
def test_importing_it_loads_no_storage_decoder_or_runner() -> None:
    code = f"import sys, latentcache.plugin; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
