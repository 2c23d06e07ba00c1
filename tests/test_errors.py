"""The tree of exceptions: what a caller may catch, and what crosses process boundaries."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from latentcache import errors
from latentcache.errors import (
    CacheError,
    ClipError,
    ConfigError,
    CorpusError,
    CorruptionError,
    EncoderError,
    GeometryError,
    LatentCacheError,
    LeaseError,
    MachineError,
    RecipeMismatchError,
    RunStoppedError,
    ShardError,
    SourceError,
    StorageError,
    UnreachableError,
    did_you_mean,
)

TREE = {
    ConfigError: (LatentCacheError, ValueError),
    GeometryError: (ConfigError,),
    CorpusError: (LatentCacheError, ValueError),
    StorageError: (LatentCacheError, OSError),
    UnreachableError: (StorageError,),
    SourceError: (StorageError,),
    LeaseError: (StorageError,),
    MachineError: (LatentCacheError, RuntimeError),
    CacheError: (LatentCacheError, ValueError),
    RecipeMismatchError: (CacheError,),
    CorruptionError: (CacheError,),
    EncoderError: (LatentCacheError, RuntimeError),
    ShardError: (LatentCacheError, RuntimeError),
    RunStoppedError: (LatentCacheError, RuntimeError),
    ClipError: (LatentCacheError, ValueError),
}


def defined() -> set[type[BaseException]]:
    classes = (c for _, c in inspect.getmembers(errors, inspect.isclass))
    return {c for c in classes if issubclass(c, BaseException) and c.__module__ == errors.__name__}


def test_the_tree_is_the_documented_one() -> None:
    assert defined() == {LatentCacheError, *TREE}
    for error, bases in TREE.items():
        assert error.__bases__ == bases
    documented = re.findall(r"^[│ ]*(?:[├└]── )?(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert set(documented) == {c.__name__ for c in defined()}


@pytest.mark.parametrize("error", sorted(set(TREE) - {ClipError}, key=lambda c: c.__name__))
def test_errors_travel_between_processes(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("what was wrong")))
    assert type(again) is error
    assert str(again) == "what was wrong"


def test_a_clip_error_travels_with_its_reason() -> None:
    again = pickle.loads(pickle.dumps(ClipError("corrupt", "damaged at 3.2 s")))
    assert (type(again), again.reason, str(again)) == (ClipError, "corrupt", "damaged at 3.2 s")


def test_near_words_are_suggested_and_others_are_not() -> None:
    assert did_you_mean("shrad_clips", ["shard_clips", "url"]) == " Did you mean 'shard_clips'?"
    assert did_you_mean("banana", ["shard_clips", "url"]) == ""
    assert did_you_mean("x", []) == ""
