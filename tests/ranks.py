"""Real processes that meet over gloo and run functions of test modules: a pair for one test, or one that stays for a file.

They are forked from a server that has imported what they need, and never from the test process, whose threads' locks they would inherit.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 600
"""How long a process may take for its imports or for a function, in a slow test; a hanging quick one is ended by pytest."""
PRELOADED = [
    "pytest",
    "torch._dynamo",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "hf_longattn.training.trainer",
    "hf_longattn.modeling.mixin",
]
"""What the functions import, once for all processes."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve(rank: int, count: int, meeting: str, folder: str, connection: Any) -> None:
    """The loop of one process: a function comes in, what it returns or its traceback goes out."""
    import torch
    import torch.distributed as dist

    os.chdir(folder)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=datetime.timedelta(seconds=SECONDS)
    )
    connection.send((True, None))
    while True:
        function, arguments = connection.recv()
        torch.manual_seed(0)
        dtype = torch.get_default_dtype()
        try:
            answer = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        torch.set_default_dtype(dtype)
        connection.send(answer)


def announce() -> None:
    """Let accelerate see the group of this process, as a launcher does."""
    import torch.distributed as dist

    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(dist.get_world_size())}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29555"}


class Ranks:
    """Processes in one group of torch.distributed, started by the first call; after a failure, by the next one again.

    Args:
        count: of processes.
        folder: their working directory; by default that of the test process.
    """

    def __init__(self, count: int = 2, folder: Path | None = None) -> None:
        self.count, self.folder = count, folder
        self.processes: list[Any] = []
        self.connections: list[Any] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function``, a function of a module, returns in each process, by rank.

        Raises:
            AssertionError: it failed in one of them; with the traceback.
        """
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send((function, arguments))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < self.count:
            waiting = {connection: rank for rank, connection in enumerate(self.connections) if rank not in answers}
            ready = multiprocessing.connection.wait(list(waiting), SECONDS)
            try:
                received = {waiting[connection]: connection.recv() for connection in ready}  # type: ignore[union-attr, index]
            except EOFError:
                received = {}
            failures = [f"process {rank}: {answer}" for rank, (succeeded, answer) in received.items() if not succeeded]
            if failures or not received:  # the others may wait for it
                self.stop()
                raise AssertionError("\n".join(failures) or "a process ended, or took too long")
            answers |= {rank: answer for rank, (_, answer) in received.items()}
        return [answers[rank] for rank in range(self.count)]

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        meeting = str(Path(tempfile.mkdtemp()) / "meeting")
        for rank in range(self.count):
            here, there = context.Pipe()
            folder = str(self.folder or Path.cwd())
            process = context.Process(target=serve, args=(rank, self.count, meeting, folder, there), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.connections.append(here)
        atexit.register(self.stop)
        self._answers()

    def stop(self) -> None:
        """End the processes without taking the group down: freed beside DistributedDataParallel it may deadlock (torch 2.13)."""
        for process in self.processes:
            with contextlib.suppress(Exception):
                process.kill()
        for connection in self.connections:
            connection.close()
        self.processes, self.connections = [], []
        atexit.unregister(self.stop)
