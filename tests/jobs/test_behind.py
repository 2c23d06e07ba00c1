"""Runs that leave fields behind their cache say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.caches import make_config, make_corpus, printed_by
from tests.tools.fields import add, cache_of, relabel, text_field, write_fields

pytestmark = pytest.mark.usefixtures("kept_pools")


@pytest.mark.slow
def test_precompute_without_a_field_in_its_configuration_says_that_it_is_behind(
    tmp_path: Path,
) -> None:
    corpus, url = make_corpus(tmp_path / "corpus", 2), str(tmp_path / "cache")
    config = make_config(tmp_path, corpus, url)
    assert "behind " not in printed_by("precompute", config, status=3)
    printed_by("add_field", url, write_fields(tmp_path, umt5=text_field()), status=3)
    (corpus / "v1.txt").write_text("another caption")
    printed = printed_by("precompute", config, status=3)
    assert "\nbehind   umt5: 2 ok clips have values of former captions, so loaders" in printed
    assert printed.endswith(f"latentcache resume {url} --field umt5\n")
    whole = make_config(tmp_path, corpus, url, fields={"umt5": text_field()})
    assert "behind " not in printed_by("precompute", whole, status=3)


def test_resuming_one_field_says_that_another_is_behind(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["one", "two", "three", "four"])
    add(cache, umt5=text_field(), other=text_field())
    url = relabel(cache, {"v0#0": "changed", "v1#0": "changed"}).storage.url
    printed = printed_by("resume", url, "--field", "other", "run.runner=local")
    assert "\nbehind   umt5: 2 ok clips have values of former captions" in printed
    assert "behind   other" not in printed
    assert "behind " not in printed_by("resume", url, "run.runner=local", status=3)
