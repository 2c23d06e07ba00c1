"""The documentation: commands exist, configurations are valid, code runs, links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import latentcache
from jobs.__main__ import JOBS, main_of
from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import AudioField, FieldConfig, VisualField, parse_fields
from latentcache.config.files import apply_overrides, validate
from latentcache.config.sections import Config
from latentcache.encoders import KINDS, resolve
from latentcache.encoders.sounds import describe_sound_encoder
from latentcache.encoders.text import (
    describe_joint_encoder,
    describe_text_encoder,
    text_settings,
)
from latentcache.encoders.towers import describe_image_tower
from latentcache.errors import ConfigError
from tests.tools import config_docs
from tests.tools.doc_blocks import PAGES, ROOT, anchors, blocks, commands, links
from tests.tools.synthetic import write_cache

pytestmark = pytest.mark.slow

SMALLEST = {
    "corpus": {"source": "/data"},
    "clips": {"frames": 49, "size": [480, 720]},
    "encoder": {"kind": "dct"},
    "cache": {"url": "/cache"},
}
#: Programs of others, which are not here, and words of the shell.
FOREIGN = {
    "accelerate",
    "aws",
    "docker",
    "eval",
    "hf",
    "kubectl",
    "mkdocs",
    "ray",
    "source",
    "torchrun",
    "[",
}
#: Pages whose Python is run by tests of their own.
RUN_ELSEWHERE = {
    "docs/cache-as-corpus.md",
    "docs/encoder-plugins.md",
    "docs/fields.md",
    "docs/text-encoders.md",
    "docs/training.md",
    "docs/views.md",
}
#: The place of a cache in a page's Python, and how it is reached.
IN_A_BUCKET = r'"s3://[^"]*"(, storage_options=\{[^}]*\})?'
#: Folders of a cache, which the picture and the README name beside those of the code.
IN_A_CACHE = {
    "columns/",
    "fields/",
    "generations/",
    "latents/",
    "logs/",
    "plan/",
    "retired/",
    "samples/",
}
every_page = pytest.mark.parametrize("page", PAGES)


@pytest.mark.parametrize("path", config_docs.MADE, ids=lambda path: path.name)
def test_a_page_has_the_tables_of_the_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert config_docs.page(path) == text, f"{path} is stale. Run: {config_docs.COMMAND}"


def test_a_page_without_a_place_for_the_tables_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Nothing\n")
    with pytest.raises(ValueError, match="between which the tables go"):
        config_docs.page(tmp_path / "page.md")


@every_page
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for link in links(path):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


def test_every_page_is_named_in_the_readme() -> None:
    text = PAGES["README.md"].read_text(encoding="utf-8")
    assert not [page for page in PAGES if page != "README.md" and page not in text]


def test_the_pictures_are_those_of_their_script() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "images" / "make_data_flow.py"))
    for theme in made["THEMES"]:
        path = made["FOLDER"] / f"data-flow-{theme}.svg"
        message = f"{path} is stale. Run: python docs/images/make_data_flow.py"
        assert path.read_text(encoding="utf-8") == made["drawing"](theme), message


def test_the_picture_names_every_room() -> None:
    light = (ROOT / "docs" / "images" / "data-flow-light.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r">([a-z]+/)<", light)) - IN_A_CACHE
    named = re.findall(
        r"^([a-z]+/)  ", PAGES["README.md"].read_text(encoding="utf-8"), re.MULTILINE
    )
    assert shown == set(named) - IN_A_CACHE


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = PAGES["docs/architecture.md"].read_text(encoding="utf-8")
    named = re.findall(r"`((?:latentcache|jobs|reading|format)/[\w/.]*)`", text)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "latentcache" / name).exists(), name


@every_page
def test_a_page_is_of_no_single_machine(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w./-])/(?:root|home|Users)/\S*", text)


# Commands


def help_of(job: str) -> str:
    """What `latentcache JOB --help` prints."""
    printed = io.StringIO()
    main = main_of(job)
    with (
        mock.patch.object(sys, "argv", [f"latentcache {job}", "--help"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert ended.value.code == 0
    return printed.getvalue()


def check_command(words: list[str]) -> None:
    """Fail where a command does not exist, or does not have its options."""
    program, *rest = words
    name = Path(program).name
    if name == "latentcache" and rest:
        check_job(rest[0], rest[1:])
    elif name in ("python", "python3", "torchrun") and "-m" in rest:
        at = rest.index("-m") + 1
        check_module(rest[at], rest[at + 1 :])
    elif name in ("python", "python3"):
        check_script(rest)
    elif name == "pip":
        check_extras(rest)
    else:
        assert name in FOREIGN or "=" in name, f"what is {name!r}?"


def check_job(job: str, rest: list[str]) -> None:
    if job in ("JOB", "--help", "--version"):
        return
    assert job in JOBS, job
    text = help_of(job)
    for word in rest:
        if word.startswith("--"):
            option = re.escape(word.partition("=")[0])
            assert re.search(rf"{option}(?![\w-])", text), f"latentcache {job} has no {word}"
        elif re.match(r"(corpus|clips|encoder|cache|run|quality)\.[\w.]+=", word):
            check_override(word)


def check_override(word: str) -> None:
    """Fail where the key is none of the configuration; whether the value fits may depend on others."""
    message = ""
    try:
        validate(Config, apply_overrides(SMALLEST, [word]), "override")
    except ConfigError as error:
        message = str(error)
    assert "unknown key" not in message


def check_module(name: str, rest: list[str]) -> None:
    job = re.fullmatch(r"(?:latentcache\.)?jobs\.(\w+)", name)
    if job:
        check_job(job[1].replace("_", "-"), rest)
    else:
        assert importlib.util.find_spec(name) is not None, name


def check_script(rest: list[str]) -> None:
    path = ROOT / rest[0]
    assert path.is_file(), rest[0]
    folder = path.parent / "loaders"
    beside = [
        other
        for other in path.parent.glob("*.py")
        if f"from {other.stem} import" in path.read_text()
    ]
    sources = [path, *beside, *(folder.glob("*.py") if path.stem == "loader" else ())]
    text = "".join(source.read_text() for source in sources)
    for option in rest[1:]:
        if option.startswith("--"):
            assert f'"{option}"' in text, f"{rest[0]} has no {option}"


def check_extras(rest: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in rest:
        if match := re.search(r"(?:latentcache|\.)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= known.keys(), word


#: The name is in no package index: what is there under it, if anything, is not this project.
BY_NAME = re.compile(r"pip3? install [^`\n]*(?<![\w./-])latentcache(?![\w-])")
TEXTS = [
    *PAGES.values(),
    *ROOT.glob("configs/*.yaml"),
    *(
        path
        for name in ("examples", "jobs", "latentcache")
        for path in ROOT.glob(f"{name}/**/*.py")
    ),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_installed_by_its_name(path: Path) -> None:
    assert BY_NAME.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "by_name"),
    [
        ("pip install 'latentcache[s3]'", True),
        ("pip install -U latentcache", True),
        ("pip install -e '.[s3]'", False),
        ('pip install "$(ls dist/latentcache-*.whl)[s3]"', False),
    ],
)
def test_an_install_by_name_is_found(text: str, by_name: bool) -> None:
    assert bool(BY_NAME.search(text)) == by_name


@every_page
def test_commands_exist(page: str) -> None:
    for words in commands(PAGES[page]):
        check_command(words)


@pytest.mark.parametrize(
    "words",
    [
        "latentcache resmue URL",
        "latentcache resume URL --retry",
        "latentcache resume URL run.wrokers=2",
        "python -m tests.no_such_module",
        "python benchmarks/no_such_script.py",
        "python benchmarks/overhead.py --no-such-option",
        "pip install -e '.[s4]'",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_found(words: str) -> None:
    with pytest.raises(AssertionError):
        check_command(words.replace("'", "").split())


# Configurations


def check_yaml(text: str) -> None:
    """Fail where a configuration, or sections of one, are not valid, or it is of no known kind."""
    data = yaml.safe_load(text)
    if "apiVersion" in data:
        check_rayjob(data)
        return
    if "family" in data:
        text_settings(data)
        return
    config = validate(Config, {**SMALLEST, **{k: complete(k, v) for k, v in data.items()}}, "docs")
    for field in parse_fields(config.fields).values():
        check_encoder(field)
    if config.encoder["kind"] in KINDS:
        resolve(config.encoder)


def check_encoder(field: FieldConfig) -> None:
    """Fail where settings of a field's encoder are not valid: it is refused only for want of its folder."""
    describe: Callable[[], object] | None = None
    if (
        isinstance(field, TextField) and "." not in field.family
    ):  # others are a reader's own modules
        describe = partial(describe_text_encoder, field.encoder())
    elif isinstance(field, JointField):
        describe = partial(describe_joint_encoder, field.encoder(), field.num_images)
    elif isinstance(field, VisualField) and field.tower is not None:
        describe = partial(describe_image_tower, field.tower)
    elif isinstance(field, AudioField) and field.sound is not None:
        describe = partial(describe_sound_encoder, field.sound, field.seconds)
    if describe is not None:
        with pytest.raises(ConfigError, match="there is no folder"):
            describe()


def complete(name: str, section: Any) -> Any:
    """Give a section that is shown in part what it must have."""
    required = SMALLEST.get(name, {})
    if name in ("corpus", "cache"):
        return {**required, **section}
    return section


def check_rayjob(data: dict[str, Any]) -> None:
    spec = data["spec"]
    assert (data["apiVersion"], data["kind"]) == ("ray.io/v1", "RayJob")
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = [mount for box in pod["containers"] for mount in box["volumeMounts"]]
        assert {mount["name"] for mount in mounted} <= volumes
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    head = [mount["mountPath"] for box in groups[0]["template"]["spec"]["containers"]
            for mount in box["volumeMounts"]]  # fmt: skip
    assert Path(spec["entrypoint"].split()[-1]).parent in map(Path, head)


@every_page
def test_configurations_are_valid(page: str) -> None:
    for block in blocks(PAGES[page], "yaml"):
        check_yaml(block.text)
    for block in blocks(PAGES[page], "json"):
        json.loads(block.text)


def test_a_configuration_that_is_not_valid_is_found() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        check_yaml("cache: {ulr: /cache}")


# Code


@pytest.fixture(scope="module")
def cache_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = write_cache(str(tmp_path_factory.mktemp("cache")), channels=16)
    cache.storage.write("logs/run.000000.jsonl", b'{"event": "run_started"}\n')
    return cache.url


@every_page
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_code_runs(
    page: str, cache_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's blocks one after the other, on a small cache in the place of that in a bucket."""
    monkeypatch.chdir(tmp_path)
    given = {"url": cache_url, "rank": 0, "world_size": 1, "train": lambda *tensors: None}
    names: dict[str, Any] = {"latentcache": latentcache, **given}
    for block in blocks(PAGES[page], "python"):
        text = re.sub(IN_A_BUCKET, repr(cache_url), block.text)
        code = compile("\n" * block.line + text, str(PAGES[page]), "exec")
        if page not in RUN_ELSEWHERE:
            exec(code, names)


@pytest.mark.long
def test_the_tour(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tour.py"), "--folder", str(tmp_path / "tour")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    killed, total = map(int, re.findall(r"killed: (\d+) of (\d+) shards", done.stdout)[0])
    assert 2 <= killed < total
    assert f"{total - killed} to encode" in done.stdout
    assert "captions: ['wave number" in done.stdout
    assert (tmp_path / "tour" / "report.html").is_file()


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_the_site_resolves_pictures_and_shows_them_in_its_own_colours(name: str) -> None:
    """Paths in raw HTML lead nowhere from a page in a folder of its own."""
    pytest.importorskip("mkdocs", reason="needs mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))
    made = hooks["on_page_markdown"]((ROOT / name).read_text(encoding="utf-8"))
    assert "<picture" not in made
    for colour in ("light", "dark"):
        assert re.search(rf"!\[[^]]+\]\([\w/]*images/data-flow-{colour}\.svg#only-{colour}\)", made)
