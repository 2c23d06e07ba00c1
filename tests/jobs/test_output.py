"""What a terminal sees: words, and nothing that it would obey."""

from __future__ import annotations

import argparse
import io
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from jobs.cli import Parser, run_job
from jobs.output import Output, redraw, safe_output
from jobs.status import PLAIN_BLOCKS, _blocks
from tests.tools.caches import make_config, run_inline
from tests.tools.doc_blocks import ROOT
from tests.tools.videos import moving_pattern, write_video

EVIL = "a\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eb\udce9"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202eb\udce9"
URL = "https://h/a.mp4?X-Amz-Signature=hush"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_is_obeyed_by_no_terminal(
    capsys: pytest.CaptureFixture[str], stream: str
) -> None:
    with safe_output():
        print(f"  {EVIL}: {URL}\nnext", file=getattr(sys, stream))
    assert getattr(capsys.readouterr(), stream[3:]) == f"  {SHOWN}: https://h/a.mp4?***\nnext\n"


def test_a_jobs_prints_and_logs_go_through_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(_: argparse.Namespace) -> int:
        print(EVIL)
        logging.getLogger("latentcache.x").warning("%s %s", EVIL, URL)
        return 0

    monkeypatch.setattr(sys, "argv", ["latentcache job", "-v"])
    logger = logging.getLogger("latentcache")
    monkeypatch.setattr(
        logger, "propagate", False
    )  # what pytest keeps of it goes over a pipe as UTF-8
    handlers, level = list(logger.handlers), logger.level
    try:
        assert run_job(job, Parser(prog="latentcache job")) == 0
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n"
    assert SHOWN in err
    assert "hush" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_an_encoding_does_not_have_is_shown_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, stream: str
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(data, encoding, write_through=True))
    with safe_output():
        print("動画.mp4 █", file=getattr(sys, stream))
    assert data.getvalue() == rb"\u52d5\u753b.mp4 \u2588" + b"\n"


class Full(io.StringIO):
    """A stream on a disk that is full: nothing is kept, at once or at the end."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self._at_once = at_once

    def write(self, text: str) -> int:
        if self._at_once:
            raise OSError(28, "No space left on device")
        return len(text)

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("encoding", "is_plain"), [("utf-8", False), ("ascii", True), ("latin-1", True)]
)
def test_speeds_are_drawn_with_what_the_encoding_has(encoding: str, is_plain: bool) -> None:
    blocks = _blocks(encoding)
    assert (blocks == PLAIN_BLOCKS) == is_plain
    assert len(blocks.encode(encoding).decode(encoding)) == len(set(blocks)) == 8


@pytest.mark.parametrize("at_once", [True, False])
def test_output_that_cannot_be_written_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: bool
) -> None:
    def job(_: argparse.Namespace) -> int:
        print("done")
        return 0

    monkeypatch.setattr(sys, "argv", ["latentcache job"])
    monkeypatch.setattr(sys, "stdout", Full(at_once=at_once))
    assert run_job(job, Parser(prog="latentcache job")) == 1
    says = "The output cannot be written: No space left on device.\n"
    assert capsys.readouterr().err == says
    monkeypatch.setattr(sys, "stderr", Full(at_once=at_once))
    assert run_job(job, Parser(prog="latentcache job")) == 1


def test_other_errors_of_the_system_are_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: argparse.Namespace) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["latentcache job"])
    with pytest.raises(OSError, match="No space left"):
        run_job(job, Parser(prog="latentcache job"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "status", "says"),
    [
        (">/dev/full", 1, "The output cannot be written: No space left on device.\n"),
        (">/dev/full 2>&1", 1, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("| exec true", 1, ""),
    ],
)
def test_a_job_ends_in_order_wherever_its_output_goes(where: str, status: int, says: str) -> None:
    job = f"{shlex.quote(sys.executable)} -m jobs completion bash"
    script = f"{{ sleep 0.1; {job}; }} {where}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, says)


def test_bars_and_screens_are_drawn() -> None:
    err = io.StringIO()
    stream = Output(err, draws=True)
    with tqdm(total=2, file=stream, ascii=True) as bar:
        bar.update()
        bar.write("between", file=stream)
    drawn = err.getvalue()
    assert drawn.startswith("\r  0%|")
    assert "\rbetween\n" in drawn.replace(" ", "")
    assert "\\" not in drawn
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        with safe_output():
            redraw(3)
    assert out.getvalue() == "\x1b[3F\x1b[J"


def test_only_a_bar_returns_to_the_start_of_its_line() -> None:
    out = io.StringIO()
    Output(out).write("\rspoofed")
    assert out.getvalue() == r"\rspoofed"


@pytest.mark.slow
def test_names_and_captions_of_a_corpus_are_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    name = "a\x1b]0;owned\x07\x9b31m"
    write_video(folder / "v.mp4", moving_pattern(5, 64, 96, seed=0))
    (folder / "v.mp4").rename(folder / f"{name}.mp4")
    (folder / f"{name}.txt").write_text(f"a caption {name}")
    (folder / f"bad{name}.mp4").write_bytes(b"nothing")
    (folder / f"x.{name}").write_bytes(b"nothing")
    cache = tmp_path / "cache"
    shown = [run_inline("precompute", make_config(tmp_path, folder, str(cache)))[1]]
    jobs = ("status", "resume", "verify", "stream", "clean")
    shown += [run_inline(job, cache)[1] for job in jobs]
    assert r"\x1b]0;owned\x07" in shown[0]
    for text in shown:
        assert not [c for c in text if not c.isprintable() and c != "\n"]
