"""The one form in which every job takes where things are, and the one rule of exit statuses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jobs import cli
from latentcache import errors
from latentcache.errors import ConfigError, LatentCacheError
from tests.tools.caches import make_config, run_inline

pytestmark = pytest.mark.usefixtures("kept_pools")

READERS = ("clean", "status", "stream", "train_example", "verify")
ALL = (*READERS, "preview", "report", "resume")


def dead_endpoint() -> str:
    """Return a URL at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def to_nowhere() -> list[str]:
    """Return the overrides that lead to storage that is down, without waiting for long."""
    return [
        f"cache.storage_options.endpoint_url={dead_endpoint()}",
        "cache.storage_options={key: a, secret: b, endpoint_url: '" + dead_endpoint() + "'}",
    ]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentcache.storage import retry

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("job", ALL)
def test_storage_that_is_down_is_exit_status_1_in_every_job(job: str) -> None:
    status, printed = run_inline(job, "s3://bucket/cache", *to_nowhere())
    assert status == 1, printed
    assert "UnreachableError: cannot" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.usefixtures("no_waiting")
def test_it_is_for_precompute_too_for_the_cache_and_for_the_corpus(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path, "s3://bucket/cache")
    assert run_inline("precompute", config, *to_nowhere())[0] == 1
    corpus = [text.replace("cache.", "corpus.") for text in to_nowhere()]
    config = make_config(tmp_path, Path("x"), str(tmp_path / "c"), corpus={"source": "s3://b/c/"})
    for job in ("precompute", "estimate"):
        status, printed = run_inline(job, config, *corpus)
        assert (status, "the corpus cannot be read" in printed) == (1, True), printed


@pytest.mark.parametrize("job", ALL)
def test_what_is_no_cache_is_exit_status_2_in_every_job(job: str, tmp_path: Path) -> None:
    assert run_inline(job, tmp_path)[0] == 2


@pytest.mark.parametrize("job", [*READERS, "preview", "report", "resume"])
def test_the_url_of_the_cache_is_given_once(job: str, tmp_path: Path) -> None:
    status, printed = run_inline(job, tmp_path, "cache.url=/elsewhere")
    assert status == 2
    assert "cache.url: the cache is the first argument" in printed


@pytest.mark.parametrize("job", READERS)
def test_what_a_job_has_no_use_for_is_refused(job: str, tmp_path: Path) -> None:
    status, printed = run_inline(job, tmp_path, "run.workers=2")
    assert status == 2
    assert "run.workers: this job only reads what is stored" in printed


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("add_field", ["fields.yaml"]),
        ("preview", []),
        ("report", []),
        ("verify", ["--sample", "1"]),
    ],
)
def test_settings_of_fields_are_refused_where_no_field_is_made_of_them(
    job: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "fields.yaml").write_text("{a: {kind: view}}")
    words = [str(tmp_path / word) if word.endswith("yaml") else word for word in words]
    status, printed = run_inline(job, tmp_path, *words, "fields.a.text.length=5")
    assert (status, "fields.a.text.length: this job takes no settings of fields" in printed) == (
        2,
        True,
    ), printed


@pytest.mark.parametrize(
    ("job", "words", "says"),
    [
        ("report", ["-o", ""], "-o '' is a folder"),
        ("report", ["-o", "."], "-o '.' is a folder"),
        ("verify", ["--sample", "1", "--seed", "-1"], "--seed is at least 0, not -1"),
    ],
)
def test_wrong_arguments_are_refused_before_the_cache_is_looked_at(
    job: str, words: list[str], says: str
) -> None:
    status, printed = run_inline(job, "nowhere", *words)
    assert (status, says in printed) == (2, True), printed


def test_storage_options_are_told_from_other_overrides() -> None:
    overrides = ["cache.storage_options.a.b=1", "run.workers=2", "cache.storage_options.c=no-x"]
    assert cli.storage_options(overrides, others=True) == {"a": {"b": 1}, "c": "no-x"}
    with pytest.raises(ConfigError, match=r"cache\.storage_options: should be a section"):
        cli.storage_options(["cache.storage_options=hunter22"])


@pytest.mark.parametrize("value", ["5", "", "[a]"])
@pytest.mark.parametrize("section", ["cache", "corpus"])
@pytest.mark.parametrize(
    "command",
    [
        ["copy", "a", "b"],
        ["merge", "a", "b", "-o", "c"],
        ["export", "a", "b", "--to", "hf"],
        ["import", "hf", "a", "b", "--like", "c"],
    ],
)
def test_storage_options_that_are_no_section_are_refused_by_jobs_that_copy(
    command: list[str], section: str, value: str
) -> None:
    override = f"{section}.storage_options={value}"
    job, *words = command
    words = [*words[:2], override, *words[2:]] if job == "merge" else [*words, override]
    status, printed = run_inline(job, *words)
    says = f"ConfigError: {section}.storage_options: should be a section with keys\n"
    assert (status, printed) == (2, says)


@pytest.mark.parametrize("job", [*READERS, "preview", "report", "resume"])
def test_null_is_no_storage_options_in_any_job(job: str, tmp_path: Path) -> None:
    status, printed = run_inline(job, tmp_path, "cache.storage_options=")
    assert (status, "cache.storage_options: should be a section" in printed) == (2, True), printed


def test_a_section_given_as_a_whole_is_one() -> None:
    with pytest.raises(ConfigError, match=r"^cache: should be a section with keys$"):
        cli.storage_options(["cache=5"], others=True)
    with pytest.raises(ConfigError, match=r"^cache\.url: the cache is the first argument"):
        cli.storage_options(["cache={url: elsewhere}"], others=True)


@pytest.mark.parametrize(
    ("word", "override"),
    [("encoder.model=x", True), ("a.mp4#0", False), ("a=b.mp4#0", False), ("data.x=1.mp4", False)],
)
def test_overrides_are_told_from_keys(word: str, override: bool) -> None:
    assert cli.is_override(word) is override


def test_every_error_has_one_of_two_exit_statuses() -> None:
    wrong = {"ConfigError", "GeometryError", "CorpusError", "CacheError", "RecipeMismatchError"}
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, LatentCacheError)
    ]
    assert {kind.__name__ for kind in kinds if kind.exit_status == 2} == wrong
    assert {kind.exit_status for kind in kinds} == {1, 2}


@pytest.mark.slow
def test_names_that_a_terminal_would_obey_are_shown_escaped(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("red\x1b[31m.mp4", "two\nlines.mp4", "back\u202e.mp4"):
        (corpus / name).write_text("no video")
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    status, printed = run_inline("precompute", config)
    assert status == 2
    for shown in (r"red\x1b[31m.mp4", r"two\nlines.mp4", r"back\u202e.mp4"):
        assert shown in printed
    assert all(line.isprintable() for line in printed.split("\n"))
    assert not any(line.startswith("lines.mp4") for line in printed.split("\n"))
