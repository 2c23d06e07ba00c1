"""Several ranks of torch.distributed on this machine, in processes that cost no second start of torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

#: What the server that processes are forked from imports once for all of them.
PRELOADED = [
    "torch.distributed",
    "diffusers.models.transformers.transformer_wan",
    "tests.tools.ranks",
]


def run_ranks(num: int, function: Callable[..., Any], *args: Any) -> None:
    """Call function(*args) in `num` processes, with the variables that torchrun sets for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    children = [
        context.Process(target=_run, args=(rank, num, port, function, args)) for rank in range(num)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0] * num


def _run(rank: int, num: int, port: int, function: Callable[..., Any], args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    function(*args)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
