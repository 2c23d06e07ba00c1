from __future__ import annotations

import socket

import pytest

from latentcache.config.sections import RunConfig
from latentcache.errors import ConfigError
from latentcache.running.driver import check_device
from latentcache.running.ray_address import address_of


def unused_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def test_a_cluster_that_does_not_answer_is_named_with_where_its_address_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = unused_address()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=rf"{address}, the address that run\.ray_address gives"):
        check_device(RunConfig(ray_address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"{address}, the address that the environment variable"):
        check_device(RunConfig())
    check_device(RunConfig(runner="local", device="cpu"))


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265"])
def test_other_services_of_ray_are_told_from_the_one_that_runs_join(address: str) -> None:
    with pytest.raises(ConfigError, match=f"{address}, .* by the host:port of its control service"):
        check_device(RunConfig(ray_address=address))


def test_the_configuration_comes_before_the_environment() -> None:
    environment = {"RAY_ADDRESS": "b:1"}
    assert address_of(RunConfig(ray_address="a:1"), environment) == ("a:1", "run.ray_address")
    assert address_of(RunConfig(), environment) == ("b:1", "the environment variable RAY_ADDRESS")
    assert address_of(RunConfig(), {}) is None
    assert address_of(RunConfig(ray_address="auto"), {}) == ("auto", "run.ray_address")
    assert address_of(RunConfig(), {"RAY_ADDRESS": "local"}) is None
    # Ray itself prefers the environment to `auto`.
    assert address_of(RunConfig(ray_address="auto"), environment) == address_of(
        RunConfig(), environment
    )
    assert address_of(RunConfig(runner="local"), environment) is None
