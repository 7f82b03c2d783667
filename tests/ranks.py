"""Real processes that meet over gloo and run functions of test modules: a pair for one test, or one that stays for a
file.

They are forked from the server of :mod:`tests.fresh_processes`, and never from the test process, whose threads' locks
they would inherit.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fresh_processes import run_fresh

DAY = 86_400
"""Seconds that a process may stay."""
SECONDS = 600
"""How long a process may take for a function, in a slow test; a hanging quick one is ended by pytest."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve(numbers: str, meeting: str, folder: str, address: str, key: str) -> None:
    """The loop of one process, of ``rank/count``: a function comes in, what it returns or its traceback goes out."""
    import torch
    import torch.distributed as dist

    rank, count = map(int, numbers.split("/"))
    multiprocessing.current_process().authkey = bytes.fromhex(key)  # with which tensors come and go
    connection = multiprocessing.connection.Client(address)
    connection.send((rank, os.getpid()))
    os.chdir(folder)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    connection.send((True, None))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:  # the tests have ended
            return
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
        self.processes: list[int] = []
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
        meeting = str(Path(tempfile.mkdtemp()) / "meeting")
        folder, key = str(self.folder or Path.cwd()), bytes(multiprocessing.current_process().authkey).hex()
        with multiprocessing.connection.Listener(family="AF_UNIX") as listener:
            for rank in range(self.count):
                command = serve, f"{rank}/{self.count}", meeting, folder, str(listener.address), key
                threading.Thread(target=run_fresh, args=command, kwargs={"timeout": DAY}, daemon=True).start()
            found = {}
            for _ in range(self.count):
                connection = listener.accept()
                rank, process = connection.recv()
                found[rank] = process, connection
        self.processes, self.connections = ([found[rank][part] for rank in range(self.count)] for part in (0, 1))
        atexit.register(self.stop)
        self._answers()

    def stop(self) -> None:
        """End the processes without taking the group down: freed beside DistributedDataParallel it may deadlock (torch
        2.13)."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for connection in self.connections:
            connection.close()
        self.processes, self.connections = [], []
        atexit.unregister(self.stop)


PAIR = Ranks()
"""Two processes that stay for all tests of this process that leave nothing behind in them."""
