"""docs/first-hour.md: its commands run as they stand, offline, and print what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from latentcache.config.files import load_config
from tests.tools.doc_blocks import PAGES, ROOT, blocks

PAGE = PAGES["docs/first-hour.md"]
CONFIG = "examples/first_hour/config.yaml"


def runs() -> Iterator[tuple[str, str]]:
    """The commands whose output the page shows, and that output."""
    for block, following in pairwise(blocks(PAGE, "bash", "text")):
        if (block.language, following.language) == ("bash", "text"):
            yield block.text, following.text


#: Times, losses and the like, but no sizes.
FRACTION = re.compile(r"\b\d+\.\d+\b(?! KiB)")
#: Lines that a run prints while it waits, so a slow machine prints more of them.
WAITING = re.compile(r"(?:probing  |starting workers|listing the corpus|\d+/\d+ clips).*\n")


def masked(text: str) -> str:
    """Text without what depends on the machine: waits, fractions, the fingerprint of random weights.

    Sizes stay: other instructions of a processor, and the times in sample tables, change some 20 bytes.
    """
    text = FRACTION.sub("N", WAITING.sub("", text))
    return re.sub(r"\b[0-9a-f]{12}\b", "FINGERPRINT", text)


def assert_printed(shown: str, printed: str) -> None:
    """Fail if the page's lines are not those that were printed; `...` stands for any."""
    parts = [part.strip("\n") for part in re.split(r"^\.\.\.$", masked(shown), flags=re.MULTILINE)]
    pattern = r"\n(?:.*\n)*".join(map(re.escape, parts))
    assert re.fullmatch(pattern, masked(printed).strip("\n")), printed


def test_the_page_shows_the_configuration_that_it_names() -> None:
    (shown,) = blocks(PAGE, "yaml")
    assert yaml.safe_load(shown.text) == yaml.safe_load((ROOT / CONFIG).read_text())


def test_the_script_is_as_long_as_the_page_says() -> None:
    num_lines = len((ROOT / "examples/first_hour/train.py").read_text().splitlines())
    assert num_lines <= 60


def test_the_page_shows_the_output_of_every_command_but_installs_and_downloads() -> None:
    commands = [command for command, _ in runs()]
    others = [block.text for block in blocks(PAGE, "bash") if block.text not in commands]
    assert len(commands) == 5
    assert [bool(re.search(r"pip install|hf download", other)) for other in others] == [True, True]


def test_the_page_installs_what_diffusers_loads_the_transformer_with() -> None:
    """Without accelerate, from_pretrained of Wan's transformer is refused, in the page's last step."""
    install = next(block.text for block in blocks(PAGE, "bash"))
    assert re.search(r"pip install .*\[diffusers,text\]' accelerate$", install, re.MULTILINE)


def test_the_settings_for_published_weights_are_valid() -> None:
    *_, block = blocks(PAGE, "bash")
    (line,) = re.findall(r"^latentcache precompute (.*)$", block.text.replace("\\\n", ""), re.M)
    path, *overrides = shlex.split(line)
    config = load_config(str(ROOT / path), overrides)
    assert config.encoder["model"] == "models/wan"
    assert config.fields["text"]["model"] == "models/wan"


@pytest.mark.parametrize(
    "printed", ["clips 20 ok\nshards 2\n", "clips 19 ok\nx\nshards 1\n", "clips 20 ok\n"]
)
def test_another_output_than_the_page_shows_is_found(printed: str) -> None:
    waits = "listing the corpus ... 10 s\nprobing  1/20 files\n"
    assert_printed("clips 20 ok\n...\nshards 1\n", f"{waits}clips 20 ok\na\nb\nshards 1\n")
    with pytest.raises(AssertionError):
        assert_printed("clips 20 ok\n...\nshards 1\n", printed)


def test_another_size_than_the_page_shows_is_found() -> None:
    assert_printed("414.7 KiB in 1.5 s, 8.1 dB\n", "414.7 KiB in 2.25 s, 8.2 dB\n")
    with pytest.raises(AssertionError):
        assert_printed("414.6 KiB in 1.5 s\n", "414.7 KiB in 1.5 s\n")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_commands_run_offline_and_print_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, shown in runs():
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert_printed(shown, done.stdout)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert losses[-1] < losses[0]
    assert (tmp_path / "first-hour/wan/trained/diffusion_pytorch_model.safetensors").is_file()
