"""What helps to write command lines and configurations: help, version, completion, schema, init."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest
import yaml

import latentcache
from jobs import completion, init, parsers, schema
from jobs.__main__ import JOBS
from jobs.__main__ import main as run
from latentcache.config.files import load_config
from latentcache.encoders import KINDS
from latentcache.encoders.schema import config_schema
from tests.tools.doc_blocks import ROOT

EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))


def latentcache_says(
    *words: str, status: int = 0, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Run `latentcache WORDS` in this process; returns what it printed."""
    with mock.patch.object(sys, "argv", ["latentcache", *words]):
        try:
            ended = run()
        except SystemExit as caught:
            ended = int(caught.code or 0)
    assert ended == status
    out, err = capsys.readouterr()
    return out, err


# help, version


def test_every_job_has_a_command_line_that_says_what_it_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(parsers.PARSERS) == list(JOBS)
    for job in JOBS:
        out, _ = latentcache_says(job, "--help", capsys=capsys)
        assert out.startswith(f"usage: latentcache {job} ")
        assert latentcache_says(job, "--version", capsys=capsys)[0] == (
            f"latentcache {latentcache.__version__}\n"
        )
    assert latentcache_says("--version", capsys=capsys)[0].split()[1] == latentcache.__version__


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["precompute", "--help"], ["estimate"]]
)
def test_help_and_mistakes_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from jobs.__main__ import main\n"
        f"sys.argv = ['latentcache', *{words!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'pydantic', 'ray', 'fsspec', 'yaml', 'tqdm'}\n"
        "print('heavy:', sorted(names & heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_ctrl_c_while_a_job_is_imported_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.__main__.main_of", interrupted)
    _, err = latentcache_says("status", "s3://b/c", status=130, capsys=capsys)
    assert err == "\nInterrupted.\n"


# completion


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], ["status", "stream"]),
        (["resume", "--retry"], ["--retry-failed"]),
        (["precompute", "run.decode_t"], ["run.decode_timeout_s="]),
        (["verify", "cache.comp"], ["cache.compression.codec=", "cache.compression.level="]),
        (["precompute", "wan.y"], ["wan.yaml"]),
        (["schema", "run.w"], []),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "wan.yaml").touch()
    made = {job: completion.words_of(job) for job in JOBS}
    line = " ".join(["latentcache", *words])
    script = (
        f"{completion.SHELLS['bash'](made)}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _latentcache; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_told_of_every_job_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = latentcache_says("completion", shell, capsys=capsys)[0]
    for job in JOBS:
        assert job in script
        for option in completion.words_of(job).options:
            assert (f"-l {option.removeprefix('--')} " if shell == "fish" else option) in script
    out, err = latentcache_says("completion", "csh", status=2, capsys=capsys)
    assert not out
    assert "invalid choice: 'csh'" in err


# schema


@pytest.fixture(scope="module")
def checks() -> Any:
    whole = config_schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_takes_the_examples_and_knows_their_keys(path: Path, checks: Any) -> None:
    raw = yaml.safe_load(path.read_text())
    checks.validate(raw)
    for section in ("corpus", "clips", "encoder", "cache"):
        wrong = {**raw, section: {**raw[section], "colour": 1}}
        with pytest.raises(jsonschema.ValidationError):
            checks.validate(wrong)


def test_the_schema_takes_plug_ins_and_tiles(checks: Any) -> None:
    raw = yaml.safe_load((ROOT / "configs/wan.yaml").read_text())
    checks.validate({**raw, "encoder": {"kind": "my.encoder", "anything": 1}})
    tiling = {"tile": [256, 256], "overlap": [64, 64]}
    checks.validate({**raw, "encoder": {**raw["encoder"], "tiling": tiling}})
    for wrong in ({"kind": "wan"}, {**raw["encoder"], "tiling": {"tile": 5}}):
        with pytest.raises(jsonschema.ValidationError):
            checks.validate({**raw, "encoder": wrong})


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(latentcache_says("schema", capsys=capsys)[0]) == config_schema()
    assert schema.__doc__


# init


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_commented_configuration_means_what_its_example_does(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.yaml"
    said, _ = latentcache_says("init", path.stem, "-o", str(out), capsys=capsys)
    assert f"latentcache precompute {out} --dry-run" in said
    assert yaml.safe_load(out.read_text()) == yaml.safe_load(path.read_text())
    assert load_config(str(out)) == load_config(str(path))


@pytest.mark.slow
def test_every_key_of_every_kind_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"snapshot_interval_s", "min_psnr", "aspect_ratios", "frame_overlap", "level"}
    for kind in KINDS:
        text, _ = latentcache_says("init", kind, "-o", "-", capsys=capsys)
        assert yaml.safe_load(text)["encoder"]["kind"] == kind
        lines = [line.lstrip(" #") for line in text.splitlines()]
        assert all(any(line.startswith(f"{key}:") for line in lines) for key in keys)


def test_encoders_are_listed_and_unknown_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, _ = latentcache_says("init", capsys=capsys)
    assert {line.partition(" ")[0] for line in listed.splitlines()} >= {
        path.stem for path in EXAMPLES
    }
    _, err = latentcache_says("init", "wam", status=2, capsys=capsys)
    assert "no example for an encoder 'wam'. Did you mean 'wan'?" in err
    mine = tmp_path / "config.yaml"
    mine.write_text("mine")
    _, err = latentcache_says("init", "wan", "-o", str(mine), status=2, capsys=capsys)
    assert "config.yaml exists, and is left as it is" in err
    assert mine.read_text() == "mine"
    assert init.EXAMPLES == ROOT / "configs"
