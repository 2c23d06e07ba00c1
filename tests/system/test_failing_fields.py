"""Fields whose encoders fail, on both runners: each costs what it fails at, and the others are complete."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache.core.dtypes import as_numpy
from tests.tools.caches import run_inline
from tests.tools.fields import cache_of, padded, text_field, write_fields

pytestmark = pytest.mark.usefixtures("kept_pools")

#: One clip of a hundred fails.
CAPTIONS = [{70: "NAN here", 130: "CLIP here"}.get(n, f"caption {n}") for n in range(200)]
#: What fails in a field that is not calm.
SPOILT = {"v70#0": "non_finite", "v130#0": "non_finite"}
FIELDS = {
    "broken": text_field(broken="build"),
    "miscounts": text_field(broken="tokens"),
    "spoilt": text_field(pooled=True),
    "whole": text_field(calm=True, length=16),
}


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_encoders_that_fail_leave_the_other_fields_complete(tmp_path: Path, runner: str) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=20)
    url, path = Path(cache.storage.url), write_fields(tmp_path, **FIELDS)
    args = (f"run.runner={runner}", "run.device=cpu")
    status, printed = run_inline("add_field", url, path, *args)
    assert status == 1, printed
    assert "Traceback" not in printed
    assert "the weights are cut short" in printed
    assert "so a mask would be wrong" in printed
    assert printed.count("Stopped. 0 shards of ") == 2
    assert reasons_of(url, "broken") == reasons_of(url, "miscounts") == {}
    assert reasons_of(url, "whole") == dict.fromkeys(keys(), None)
    assert reasons_of(url, "spoilt") == {**dict.fromkeys(keys(), None), **SPOILT}
    opened = latentcache.open_cache(str(url))
    for n in range(len(opened)):
        sample = opened[n]
        if sample["caption"].startswith("caption"):
            np.testing.assert_array_equal(as_numpy(sample["spoilt"]), padded(sample["caption"]))
    loader = latentcache.LatentLoader(str(url), batch_size=1, fields=["spoilt", "whole"])
    assert Counter(key for batch in loader for key in batch["key"]) == Counter(
        key for key in (str(opened[n]["key"]) for n in range(len(opened))) if key not in SPOILT
    )
    # Another try finishes nothing that cannot be, and does nothing twice.
    assert run_inline("resume", url, *args)[0] == 1
    assert reasons_of(url, "spoilt") == {**dict.fromkeys(keys(), None), **SPOILT}


def keys() -> list[str]:
    return [f"v{n}#0" for n in range(len(CAPTIONS))]


def reasons_of(url: Path, field: str) -> dict[str, str | None]:
    """Why each clip has failed in a field, by key."""
    tables = [pq.read_table(path) for path in url.glob(f"fields/{field}/samples/*/*/*.parquet")]
    if not tables:
        return {}
    table = pa.concat_tables(tables)
    return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
