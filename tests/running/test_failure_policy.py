"""What an error costs, and what an attempt at some work becomes."""

from __future__ import annotations

import pickle

import pytest

from latentcache import errors
from latentcache.config.sections import RunConfig
from latentcache.core.records import ShardReport
from latentcache.errors import (
    ClipError,
    EncoderError,
    LatentCacheError,
    RunStoppedError,
    StorageError,
)
from latentcache.running.attempt import Failed, attempt
from latentcache.running.failure_policy import WINDOW, Judge, classify
from tests.tools.encoders.raising import (
    OF_CLIP,
    OF_IMPORT,
    OF_RUN,
    OF_SHARD,
    OF_WORKER,
    OwnStorageError,
)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("cost", "kinds"),
    [
        ("clip", OF_CLIP),
        ("stop", {**OF_RUN, **OF_IMPORT}),
        ("shard", set(OF_SHARD) - {"unknown reason"}),
        ("worker", OF_WORKER),
    ],
)
def test_each_error_costs_a_clip_a_shard_or_the_run(cost: str, kinds: set[str]) -> None:
    every = {**OF_CLIP, **OF_RUN, **OF_IMPORT, **OF_SHARD, **OF_WORKER}
    assert {kind: classify(every[kind]()) for kind in kinds} == dict.fromkeys(kinds, cost)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: unspecified launch failure",
        "CUDA error: device-side assert triggered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unknown error",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa)`",
        "CUDA driver error: unspecified launch failure",
        "HIP error: an illegal memory access was encountered",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_what_says_that_a_process_computes_no_more_costs_its_worker(text: str) -> None:
    assert classify(RuntimeError(text)) == "worker"
    wrapped = EncoderError("the model failed")
    wrapped.__cause__ = ValueError("a layer failed")
    wrapped.__cause__.__context__ = RuntimeError(f"{text}\nmore about it")
    assert classify(wrapped) == "worker"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: invalid configuration argument",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_a_process_survives_costs_the_shard(text: str) -> None:
    assert classify(RuntimeError(text)) == "shard"


def test_errors_that_lead_to_each_other_end() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__context__, second.__context__ = second, first
    assert classify(first) == "shard"


def test_every_class_of_error_has_a_cost() -> None:
    own = [
        e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LatentCacheError)
    ]
    costs = {
        e: classify(e("unreadable", "it")) if e is ClipError else classify(e("it")) for e in own
    }
    names = {cost: {e.__name__ for e in own if costs[e] == cost} for cost in ("clip", "stop")}
    assert names == {
        "clip": {"ClipError"},
        "stop": {
            "LeaseError",
            "MachineError",
            "RunStoppedError",
            "SourceError",
            "StorageError",
            "UnreachableError",
        },
    }


def test_a_wrong_configuration_stops_a_start_and_costs_a_shard_later() -> None:
    for kind in ("ConfigError", "GeometryError"):
        assert classify(OF_SHARD[kind](), starting=True) == "stop"
        assert classify(OF_SHARD[kind]()) == "shard"
    assert classify(OF_CLIP["ClipError"](), starting=True) == "shard"


def test_an_attempt_gives_what_the_work_does() -> None:
    assert attempt(lambda: 3) == 3


@pytest.mark.parametrize("kind", [*OF_SHARD, *OF_RUN])
def test_a_failed_attempt_can_go_to_another_process(kind: str) -> None:
    error = {**OF_SHARD, **OF_RUN}[kind]()
    failed = attempt(lambda: raising(error))
    assert isinstance(failed, Failed)
    there = pickle.loads(pickle.dumps(failed))
    assert there.error == failed.error
    assert failed.error.startswith(type(error).__name__)
    assert (there.stop is not None) == (kind in OF_RUN)
    if kind in OF_RUN:
        assert str(there.stop) == str(error)
        assert isinstance(error, type(there.stop))


@pytest.mark.parametrize("starting", [False, True])
@pytest.mark.parametrize("kind", OF_IMPORT)
def test_an_import_that_fails_stops_the_run_and_says_what_to_do(kind: str, starting: bool) -> None:
    failed = attempt(lambda: raising(OF_IMPORT[kind]()), starting=starting)
    assert isinstance(failed, Failed)
    assert type(failed.stop) is RunStoppedError
    assert "the installation is broken: " in str(failed.stop)
    assert "flash_attn" in str(failed.stop)


def test_an_errors_cause_is_kept_in_its_own_process() -> None:
    error = OwnStorageError()
    failed = attempt(lambda: raising(error))
    assert isinstance(failed, Failed)
    assert type(failed.stop) is StorageError
    assert failed.stop.__cause__ is error


def report(num_ok: int, num_clips: int = 10) -> ShardReport:
    counts = dict.fromkeys(("num_frames", "stored_bytes", "table_bytes", "raw_bytes"), 0)
    return ShardReport(bucket="b", shard=0, num_clips=num_clips, num_ok=num_ok, **counts)


@pytest.mark.parametrize("num_good", [0, 1000])
def test_the_latest_clips_are_judged_however_many_were_good_before(num_good: int) -> None:
    """Half of what is looked at may fail; the next shard is too much, after a day as after a minute."""
    judge = Judge(RunConfig(judged_clips=20, max_failed_fraction=0.5))
    window = WINDOW * judge.config.judged_clips // 10
    for _ in range(num_good):
        judge.add_clips(report(10))
    assert not judge.too_many_clips_fail()
    failed = 0
    while not judge.too_many_clips_fail():
        judge.add_clips(report(0))
        failed += 1
    assert failed == (window // 2 + 1 if num_good else 2)
    assert judge.num_clips <= window * 10


def test_failures_that_are_long_past_stop_nothing() -> None:
    judge = Judge(RunConfig(judged_clips=20, max_failed_fraction=0.5))
    for num_ok in [10] * 5 + [0] * 5 + [10] * WINDOW * 2:
        judge.add_clips(report(num_ok))
        assert not judge.too_many_clips_fail()
    assert judge.num_failed == 0


def test_an_interrupt_ends_a_start_and_not_the_driver_later() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: raising(KeyboardInterrupt()), starting=True)
    assert attempt(lambda: raising(KeyboardInterrupt())) == Failed(error="KeyboardInterrupt")
