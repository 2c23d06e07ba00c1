"""Where URLs lead on this machine, and what is refused in the folder of a Ray job."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.errors import ConfigError
from latentcache.storage.places import check_new_place, local_place


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a Ray job, in which the process is, in a folder of it."""
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    (folder / "configs").mkdir(parents=True)
    monkeypatch.chdir(folder / "configs")
    return folder


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "FILE://{}", "simplecache::{}"])
def test_a_path_leads_to_the_same_place_in_every_form(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a/b", f"{tmp_path}/a/b/", "c/../a/b"):
        assert local_place(form.format(path)) == tmp_path / "a/b"
    (tmp_path / "link").symlink_to("a")
    assert local_place(form.format("link/b")) == tmp_path / "a/b"


@pytest.mark.parametrize("url", ["s3://b/a", "memory://a", "simplecache::s3://b/a", "hf://a/b"])
def test_other_urls_lead_to_no_place_of_this_machine(url: str) -> None:
    assert local_place(url) is None


@pytest.mark.parametrize(
    "url", ["a", "./a", "../a", "file://a", "local://a", "local://./a", "simplecache::file://a"]
)
def test_the_folder_of_a_ray_job_is_refused(url: str, job_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.url .* is in the folder of this Ray job") as got:
        check_new_place(url, "cache.url")
    assert f"({job_folder})" in str(got.value)
    with pytest.raises(ConfigError, match="Ray removes it"):
        check_new_place(f"{job_folder}/a", "cache.url")


def test_other_places_stay(
    job_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = job_folder.with_name("_ray_pkg_12")
    for url in (f"{tmp_path}/a", f"file://{tmp_path}/a", "../../a", str(other), "s3://b/a"):
        check_new_place(url, "cache.url")
    monkeypatch.chdir(tmp_path)
    check_new_place("a", "cache.url")
