"""Which device is meant, and how many CPUs there are: on machines with and without GPUs and quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from latentcache.core.devices import resolve_device
from latentcache.core.machine import num_cpus
from latentcache.errors import ConfigError

BOUND = 16


@pytest.fixture(params=[0, 1, 3])
def num_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine with that many GPUs."""
    number: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    return number


@pytest.mark.parametrize("asked", [None, "auto"])
def test_auto_is_cuda_if_there_is_a_gpu_else_the_cpu(num_gpus: int, asked: str | None) -> None:
    assert resolve_device(asked) == torch.device("cuda" if num_gpus else "cpu")


@pytest.mark.parametrize("asked", ["cpu", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_is_always_there(num_gpus: int, asked: torch.device | str) -> None:
    assert resolve_device(asked).type == "cpu"


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:2", "cuda:3", torch.device("cuda", 1)])
def test_a_gpu_is_given_or_refused_as_the_machine_has_it(
    num_gpus: int, asked: torch.device | str
) -> None:
    device = torch.device(asked)
    if (device.index or 0) < num_gpus:
        assert resolve_device(asked) == device
        return
    with pytest.raises(ConfigError) as refused:
        resolve_device(asked, "run.device")
    message = str(refused.value)
    assert message.startswith(f"run.device='{device}' is not there: ")
    gpus = ", ".join(f"cuda:{n}" for n in range(num_gpus))
    assert (f"has {gpus}." if gpus else "sees no CUDA GPU on this machine.") in message
    assert "Give cpu or auto" in message


@pytest.mark.parametrize(
    "asked",
    ["", "foo", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:01", "cuda:x", " cpu", "cuda:٣", "meta"],
)
@pytest.mark.parametrize("others", [False, True])
def test_what_is_no_device_is_refused(num_gpus: int, asked: str, *, others: bool) -> None:
    if asked == "meta" and others:
        assert resolve_device(asked, others=True) == torch.device("meta")
        return
    with pytest.raises(
        ConfigError, match=r"is not a device to be used here: .*Give auto, cpu, cuda"
    ):
        resolve_device(asked, "--device", others=others)


@pytest.mark.skipif(hasattr(torch, "xpu") and torch.xpu.is_available(), reason="there is an XPU")
def test_a_device_that_torch_knows_and_the_machine_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="'xpu' is not a device to be used here"):
        resolve_device("xpu", others=True)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to BOUND CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(BOUND)), raising=False)


def cgroups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Lay out control groups; returns where they are mounted and the file that names the process's own."""
    for path, text in files.items():
        (folder / "fs" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "fs" / path).write_text(f"{text}\n")
    (folder / "cgroup").write_text(own)
    return folder / "fs", folder / "cgroup"


V1 = "12:pids:/a\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/a\n0::/\n"
V2 = "0::/kube/pod/abc\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"kube/pod/abc/cpu.max": "300000 100000"}, 3),
        (V2, {"kube/pod/abc/cpu.max": "150000 100000"}, 2),
        (V2, {"kube/pod/abc/cpu.max": "10000 100000"}, 1),
        (V2, {"kube/pod/abc/cpu.max": "max 100000"}, BOUND),
        (V2, {"kube/pod/abc/cpu.max": "6400000 100000"}, BOUND),
        # The quota of a group holds for those in it.
        (V2, {"kube/pod/abc/cpu.max": "max 100000", "kube/pod/cpu.max": "200000 100000"}, 2),
        (V2, {"kube/pod/abc/cpu.max": "200000 100000", "kube/cpu.max": "500000 100000"}, 2),
        # In a container its own group is what is mounted, whatever it is called outside.
        (V2, {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "50000 20000"}, 3),
        ("0::/../../other\n", {"cpu.max": "400000 100000"}, 4),
        # Both versions at once: version 2 is mounted beside the others.
        (V2, {"unified/kube/pod/abc/cpu.max": "400000 100000"}, 4),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
        (V1, {"cpu/cpu.cfs_quota_us": "200000"}, BOUND),
        (V1, {"pids/a/cpu.cfs_quota_us": "1", "pids/a/cpu.cfs_period_us": "1"}, BOUND),
        # What cannot be understood is no quota.
        (V2, {"kube/pod/abc/cpu.max": ""}, BOUND),
        (V2, {"kube/pod/abc/cpu.max": "200000 0"}, BOUND),
        (V2, {"kube/pod/abc/cpu.max": "many few"}, BOUND),
        ("garbage\n::\n:\n", {}, BOUND),
        ("", {"cpu.max": "200000 100000"}, BOUND),
    ],
)
@pytest.mark.usefixtures("bound")
def test_cpus_are_counted_within_the_quota(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    assert num_cpus(*cgroups(tmp_path, own, files)) == expected


@pytest.mark.usefixtures("bound")
def test_without_control_groups_all_bound_cpus_count(tmp_path: Path) -> None:
    assert num_cpus(tmp_path / "none", tmp_path / "none either") == BOUND


def test_cpus_are_counted_where_nothing_binds_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert num_cpus(tmp_path / "none", tmp_path / "none either") == os.cpu_count()
