"""The code of docs/views.md runs, on a small cache, in the order of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools.doc_blocks import PAGES, blocks
from tests.tools.synthetic import write_cache

URL = "s3://bucket/latents"


@pytest.mark.slow
def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets={"9x16x16": 4}, by_frame=True)
    given: dict[str, Any] = {}
    for block in blocks(PAGES["docs/views.md"], "python"):
        exec(compile(block.text.replace(URL, cache.url), "docs/views.md", "exec"), given)
    assert given["batch"]["latents"].shape[2] == 3
    for view in (given["Ends"](), given["turned"]):
        assert list(given["LatentLoader"](cache.url, view=view))
    assert list(given["loader"])
