"""Pushes to a hub on this machine, with huggingface_hub's own client; what is pushed is read again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

import latentcache
from latentcache.reading.cache import Cache, open_cache
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, grow, text_field
from tests.tools.hub import REPO, TOKEN, Hub, serving

pytestmark = [
    pytest.mark.slow,
    # huggingface_hub's own, of how it calls httpx.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
URL = f"hf://datasets/{REPO}"
#: Files that are no cache's, wherever they are.
MINE = (
    *("LICENSE.txt", "samples/demo.mp4", "latents/notes.txt", "fields/README.md", "columns/x.csv"),
    *("plan/todo.md", "index.parquet.bak", "cache.json.txt", "other/x"),
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which huggingface_hub takes for the real one."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture(scope="module", name="cache")
def cache_fixture(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    planned = cache_of(tmp_path_factory.mktemp("pushed"), [f"caption {n}" for n in range(7)])
    add(planned, umt5=text_field())
    return open_cache(planned.storage.url)


def push(cache: Cache, *args: str, status: int = 0) -> str:
    """Push a cache; returns what the job printed."""
    huggingface_hub.HfFileSystem.clear_instance_cache()
    found, printed = run_inline("push", cache.storage.url, URL, *args)
    assert found == status, printed
    assert "Traceback" not in printed
    return printed


def read_again() -> Cache:
    huggingface_hub.HfFileSystem.clear_instance_cache()
    return open_cache(URL)


@pytest.mark.long
def test_what_is_pushed_is_read_from_the_hub(hub: Hub, cache: Cache) -> None:
    assert f"pushed   {hub.url}/datasets/{REPO}/commit/" in push(cache, "--license", "mit")
    assert hub.files is not None
    assert b"license: mit" in hub.files["README.md"]
    assert len(hub.commits) == 1
    there = read_again()
    assert there.keys() == cache.keys()
    for key in cache.keys():  # noqa: SIM118 - a cache is no dict
        assert there.stored(key).equal(cache.stored(key))
        assert there[key]["umt5"].equal(cache[key]["umt5"])
    batches = latentcache.LatentLoader(URL, batch_size=2, fields=["umt5"], num_threads=1)
    assert sum(len(batch["key"]) for batch in batches) == len(cache)


@pytest.mark.long
def test_an_interrupted_push_shows_nothing_and_goes_on(hub: Hub, cache: Cache) -> None:
    hub.most_uploads = 1
    printed = push(cache, status=1)
    assert "cannot push to" in printed
    assert "the upload was cut off" in printed
    assert hub.files == {}
    (done,) = hub.large
    hub.most_uploads, hub.uploads = None, 0
    push(cache)
    assert done in hub.large
    assert hub.uploads == len(hub.large) - 1
    assert read_again().keys() == cache.keys()


@pytest.mark.long
def test_a_cache_that_has_changed_is_pushed_again_as_it_is(
    hub: Hub, cache: Cache, tmp_path: Path
) -> None:
    shutil.copytree(cache.storage.url, tmp_path / "copy")
    cache = open_cache(str(tmp_path / "copy"))
    push(cache)
    assert hub.files is not None
    hub.files |= dict.fromkeys(MINE, b"mine")
    dropped, printed = run_inline("drop_field", cache.storage.url, "umt5", "--yes")
    assert dropped == 0, printed
    push(open_cache(cache.storage.url))
    assert [path for path in hub.files if path.startswith("fields/")] == ["fields/README.md"]
    assert [hub.files.get(path) for path in MINE] == [b"mine"] * len(MINE)
    there = read_again()
    assert there.field_names == []
    assert there.keys() == cache.keys()


def test_files_that_are_no_caches_stay(hub: Hub, cache: Cache) -> None:
    hub.files = dict.fromkeys(MINE, b"mine")
    push(cache)
    assert [hub.files.get(path) for path in MINE] == [b"mine"] * len(MINE)
    assert read_again().keys() == cache.keys()


def test_files_named_as_a_caches_where_there_is_none_are_not_replaced(
    hub: Hub, cache: Cache
) -> None:
    hub.files = {"latents/zarr.json": b"of another array"}
    printed = push(cache, status=2)
    assert (
        "holds no cache, but files that are named as those of one: 'latents/zarr.json'" in printed
    )
    assert hub.files == {"latents/zarr.json": b"of another array"}


@pytest.mark.long
def test_another_cache_and_fewer_steps_are_refused(hub: Hub, tmp_path: Path) -> None:
    planned = cache_of(tmp_path, ["a", "b"])
    older = tmp_path / "older"
    shutil.copytree(planned.storage.url, older)
    push(open_cache(str(older)))
    newer = open_cache(grow(planned, ["c"]).storage.url)
    push(newer)
    assert read_again().keys() == newer.keys()
    before = dict(hub.files or {})
    (tmp_path / "other").mkdir()
    other = cache_of(tmp_path / "other", ["a"], shard_clips=2)
    for url, path in ((other.storage.url, "cache.json"), (str(older), "generations/000002.json")):
        printed = push(open_cache(url), status=2)
        assert f"its {path} differs" in printed
        assert "Nothing was pushed" in printed
    assert hub.files == before


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"refuse": 403}, "you are not allowed"),
        ({"refuse": 404}, "404"),
        ({"token": "hf_wrong"}, "Invalid username or password"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    fault: dict[str, object],
    said: str,
    hub: Hub,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "token" in fault:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: fault["token"])
    else:
        hub.refuse = int(str(fault["refuse"]))
    printed = push(cache, status=1)
    *_, last = printed.strip().split("\n")
    assert last.startswith(f"StorageError: cannot push to {URL}: ")
    assert said in last
    if said != "404":
        assert last.endswith("Check the permissions there, or the credentials you give.")
    assert "hf_wrong" not in printed
    assert TOKEN not in printed


def test_a_hub_that_is_not_there_is_said_to_be_away(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    printed = push(cache, status=1)
    assert f"cannot push to {URL}: ConnectError" in printed
    assert "Check the network and the endpoint, then run the same command again." in printed


def test_a_licence_cannot_write_into_the_card(cache: Cache) -> None:
    assert "no id of a licence" in push(cache, "--license", "mit\nviewer: true", status=2)
