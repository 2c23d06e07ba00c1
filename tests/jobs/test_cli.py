"""What the jobs share: exit statuses, the words of errors, folders of the user's."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cli
from jobs.cli import INTERRUPTED, OK, OTHER, SOME_FAILED, WRONG_INPUT, Parser, run_job
from latentcache import errors
from latentcache.errors import ConfigError, LatentCacheError


@pytest.fixture(autouse=True)
def _same_handler() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException, *words: str) -> int:
    """Run a job that ends with a status, or raises."""

    def job(_: argparse.Namespace) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["latentcache job", *words])
    return run_job(job, Parser(prog="latentcache job"))


@pytest.mark.parametrize("status", [OK, OTHER, WRONG_INPUT, SOME_FAILED])
def test_a_jobs_own_status_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, status) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("status", [OK, OTHER, WRONG_INPUT, SOME_FAILED])
def test_failures_are_exit_status_0_where_they_are_allowed(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    parser = Parser(prog="latentcache job")
    parser.add_allow_failures()
    monkeypatch.setattr(sys, "argv", ["latentcache job", "--allow-failures"])
    assert run_job(lambda _: status, parser) == (OK if status == SOME_FAILED else status)


ERRORS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, LatentCacheError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_one_message_and_a_status(
    kind: type[LatentCacheError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind.__new__(kind)
    error.args = ("no such thing. Do that.",)
    assert run(monkeypatch, error) == kind.exit_status
    assert capsys.readouterr() == ("", f"{kind.__name__}: {error}\n")


def test_an_interrupt_and_a_closed_pipe_have_their_statuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr().err == "\nInterrupted.\n"
    assert run(monkeypatch, BrokenPipeError()) == OTHER
    assert capsys.readouterr().err == ""


def test_sigterm_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: argparse.Namespace) -> int:
        signal.raise_signal(signal.SIGTERM)
        return OK

    monkeypatch.setattr(sys, "argv", ["latentcache job"])
    assert run_job(job, Parser(prog="latentcache job")) == INTERRUPTED


def test_a_wrong_command_line_says_what_and_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, OK, "--no-such-option")
    assert caught.value.code == WRONG_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latentcache job: unrecognized arguments: --no-such-option\nusage: ")


def test_a_folder_is_made_or_one_message_says_why_not(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert cli.made_folder(folder, "Use --out.") == folder
    assert cli.made_folder(folder, "Use --out.").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot make the folder .*file/c: .*\. Use --out\.$"):
        cli.made_folder(tmp_path / "file" / "c", "Use --out.")


@pytest.mark.parametrize("name", ["", ".", "..", "gone/..", "/", "folder", "folder/"])
def test_a_folder_is_no_file_to_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"^-o '{name}' is a folder\. Give the name of a file\.$"
    ):
        cli.output_file(name)


def test_a_new_file_and_an_old_one_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    for name in ("old", "new", "new/deep", "n" * 300):
        assert cli.output_file(str(tmp_path / name)) == tmp_path / name
