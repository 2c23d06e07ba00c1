"""A cache from a stranger: no job imports what it names, or opens what only its plan names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import latentcache
from latentcache.errors import ConfigError
from tests.contracts.encoder_cases_plugin import example
from tests.tools.caches import make_config, run_inline
from tests.tools.corpora import write_csv
from tests.tools.videos import moving_pattern, write_video

PACKAGE = "encoders_of_a_stranger"
KIND = f"{PACKAGE}.grey"
SCHEMES = "corpus.schemes=[zip]"
NOTE = (
    "import pathlib\nwith pathlib.Path({path!r}).open('a') as notes:\n    notes.write('{text} ')\n"
)
#: What each job that builds the encoder is given, beside the cache.
BUILDING = {
    "resume": [],
    "verify": ["--sample", "1"],
    "preview": ["--sample", "1", "-o", "OUT"],
    "report": ["--clips", "1", "-o", "OUT/page.html"],
}


@pytest.fixture(name="made", scope="module")
def made_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a cache of one clip out of an archive, whose encoder notes each import of it."""
    folder = tmp_path_factory.mktemp("stranger")
    package = folder / "packages" / PACKAGE
    package.mkdir(parents=True)
    note = NOTE.format(path=str(folder / "imports"), text="imported")
    code = example().replace("import torch\n", f"import torch\n\n{note}", 1)
    (package / "grey.py").write_text(code)
    write_video(folder / "v.mp4", moving_pattern(5, 64, 96, seed=3))
    with zipfile.ZipFile(folder / "videos.zip", "w") as archive:
        archive.write(folder / "v.mp4", "v.mp4")
    rows = [{"video": f"zip://v.mp4::{folder}/videos.zip", "key": "v"}]
    config = make_config(
        folder,
        write_csv(folder / "t.csv", rows),
        str(folder / "cache"),
        corpus={"columns": {"video": "video", "key": "key"}},
        quality={"every": 0},
    )
    data = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**data, "encoder": {"kind": KIND, "levels": 8}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        status, printed = run_inline("precompute", config, SCHEMES)
        assert status == 0, printed
        yield folder
        forget(folder)


@pytest.fixture(name="home")
def home_fixture(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache, in a process that has not imported its encoder."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    forget(made)
    return tmp_path


def forget(home: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
    (home / "imports").unlink(missing_ok=True)


def imported(made: Path) -> list[str]:
    """Which modules were imported since."""
    notes = made / "imports"
    return notes.read_text().split() if notes.exists() else []


def run(home: Path, job: str, *more: str) -> tuple[int, str]:
    words = [word.replace("OUT", str(home / "out")) for word in BUILDING.get(job, [])]
    return run_inline(job, home / "cache", *words, *more)


def lose_the_shard(home: Path) -> None:
    for folder in ("samples", "latents"):
        for path in (home / "cache" / folder).rglob("*"):
            if path.is_file() and path.name != "zarr.json":
                path.unlink()


@pytest.mark.parametrize("job", BUILDING)
def test_no_job_imports_an_encoder_that_only_the_cache_names(
    made: Path, home: Path, job: str
) -> None:
    lose_the_shard(home) if job == "resume" else None
    status, printed = run(home, job, SCHEMES)
    assert status == 2, printed
    assert f"the cache's encoder is '{KIND}'" in printed
    assert "--allow-encoder" in printed
    assert not imported(made)


PERMITTED = [(job, ["--allow-encoder", KIND]) for job in BUILDING]
PERMITTED.append(("verify", [f"encoder.kind={KIND}"]))


@pytest.mark.parametrize(("job", "permit"), PERMITTED, ids=lambda words: "".join(words)[:20])
def test_the_command_line_names_it(made: Path, home: Path, job: str, permit: list[str]) -> None:
    lose_the_shard(home) if job == "resume" else None
    status, printed = run(home, job, *permit, SCHEMES)
    assert status == 0, printed
    assert imported(made) == ["imported"]


@pytest.mark.parametrize("job", ["status", "stream", "clean", "verify"])
def test_other_jobs_need_no_encoder(made: Path, home: Path, job: str) -> None:
    status, printed = run_inline(job, home / "cache")
    assert status == 0, printed
    assert not imported(made)


def test_decode_imports_it_only_if_the_caller_names_it(made: Path, home: Path) -> None:
    cache = latentcache.open_cache(str(home / "cache"))
    for changes in (None, {"levels": 8}):
        with pytest.raises(ConfigError, match=r"Nothing was imported.*encoder={'kind'"):
            cache.decode("v#0", encoder=changes)
    assert not imported(made)
    assert cache.decode("v#0", encoder={"kind": KIND}).shape == (5, 64, 96, 3)


def test_a_plan_opens_no_file_system_that_the_command_line_does_not_name(home: Path) -> None:
    lose_the_shard(home)
    permit = ["--allow-encoder", KIND]
    status, printed = run(home, "resume", *permit)
    assert status == 2, printed
    assert "needs the file system zip" in printed
    status, printed = run(home, "resume", *permit, "--skip-changed")  # looks at nothing before
    assert (status, "unreadable" in printed) == (3, True), printed
    status, printed = run(home, "resume", *permit, "--retry-failed", SCHEMES)
    assert status == 0, printed


#: Modules of the library and of packages that are imported before or while a clip is decoded.
SHADOWS = ("queue", "fractions", "mmap", "av", "fsspec", "numcodecs", "PIL")


def shadowed(folder: Path, notes: Path) -> Path:
    """A folder with modules that note being imported, and fail."""
    folder.mkdir()
    for name in SHADOWS:
        note = NOTE.format(path=str(notes), text=name)
        (folder / f"{name}.py").write_text(f"{note}raise ImportError('{name}')\n")
    return folder


def test_a_queue_of_the_working_folder_is_not_the_library_s(
    made: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding processes start where the driver is, and look for modules elsewhere."""
    lose_the_shard(home)
    monkeypatch.chdir(shadowed(home / "work", made / "imports"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", "")]))
    status, printed = run(home, "resume", "--allow-encoder", KIND, SCHEMES)
    assert status == 0, printed
    assert imported(made) == ["imported"]


@pytest.mark.long
def test_nor_is_it_in_workers_of_ray(made: Path, home: Path) -> None:
    """Ray lets workers search the driver's folder before everything else."""
    lose_the_shard(home)
    work = shadowed(home / "work", made / "imports")
    permit = ["--allow-encoder", KIND, SCHEMES, "run.runner=ray", "run.workers=1"]
    command = [sys.executable, "-P", "-m", "jobs.resume", str(home / "cache"), *permit]
    paths = [os.environ["PYTHONPATH"], str(made / "packages")]
    done = subprocess.run(
        command,
        cwd=work,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert imported(made) == ["imported", "imported"]  # by the driver, and by the worker
