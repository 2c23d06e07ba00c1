"""The pages about other trainers: what they print is what `init --from` makes of their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from latentcache.config.files import validate
from latentcache.config.sections import Config
from latentcache.config.trainers import convert

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "from-musubi-tuner.md": ("musubi", "toml"),
    "from-finetrainers.md": ("finetrainers", "json"),
    "from-simpletuner.md": ("simpletuner", "json"),
    "from-diffusion-pipe.md": ("diffusion-pipe", "toml"),
}


def block(page: str, language: str) -> str:
    """Return the only block of a language on a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("page", PAGES)
def test_the_file_of_a_page_becomes_the_configuration_of_the_page(
    page: str, tmp_path: Path
) -> None:
    trainer, language = PAGES[page]
    file = tmp_path / f"file.{language}"
    file.write_text(block(page, language))
    (found,) = convert(trainer, str(file))
    assert {"corpus": found.corpus, "clips": found.clips} == yaml.safe_load(block(page, "yaml"))


def test_the_configuration_of_fastvideos_page_is_valid() -> None:
    """It has no file that `init --from` reads."""
    config = validate(Config, yaml.safe_load(block("from-fastvideo.md", "yaml")), "the page")
    assert (config.clips.frames, config.clips.size) == (77, (480, 832))
