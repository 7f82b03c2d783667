"""Two processes that stay for all cells of a session: each computes its half of the sequences."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import tempfile
from typing import Any

import torch
from torch import Tensor

from hf_longattn import errors
from hf_longattn.errors import LongAttentionError

PROCESSES = 2
SECONDS, START = 120, 600
"""How long a cell, and the processes' imports, may take."""


def serve(rank: int, meeting: str, connection: Any) -> None:
    """The loop of one process: a cell comes in, its outputs or a refusal go out."""
    import torch.distributed as dist

    from tests.modes.cells import Cell

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES, timeout=datetime.timedelta(seconds=SECONDS)
    )
    connection.send("ready")
    while True:
        row, names = connection.recv()
        try:
            cell = Cell(row, *names)
            torch.manual_seed(0)
            model = cell.model()
            for way in cell.ways:
                model = way.prepare(model)
            text = cell.lay_out(model, cell.sequences())
            fields = cell.call(model, text.arguments)
            answer: Any = {name: value.detach() for name, value in fields.items()}
        except LongAttentionError as error:
            answer = (type(error).__name__, str(error))
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


class Ranks:
    """The two processes, started when the first cell needs them."""

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.connections: list[Any] = []

    def run(self, row: str, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The fields of the whole batch: each process's tokens side by side, gradients of its own tokens' sum added up.

        Raises:
            LongAttentionError: both processes refused.
            AssertionError: anything else went wrong in one of them.
        """
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send((row, names))
        answers: list[Any] = [None] * PROCESSES
        while None in answers:
            waiting = {self.connections[rank]: rank for rank, answer in enumerate(answers) if answer is None}
            ready = multiprocessing.connection.wait(list(waiting), SECONDS)
            for connection in ready:
                answers[waiting[connection]] = connection.recv()  # type: ignore[union-attr, index]
            if not ready or any(isinstance(answer, str) for answer in answers):  # the other one may wait for it
                self.stop()
                raise AssertionError(" | ".join(str(answer)[:300] for answer in answers))
        if all(isinstance(answer, tuple) for answer in answers):
            kind, words = answers[0]
            raise getattr(errors, kind)(words)
        assert all(isinstance(answer, dict) for answer in answers), "one process refused and the other one did not"
        return {name: _joined(name, [answer[name] for answer in answers]) for name in answers[0]}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        meeting = tempfile.mktemp()
        for rank in range(PROCESSES):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, meeting, there), daemon=True)
            process.start()
            self.processes.append(process)
            self.connections.append(here)
        for connection in self.connections:
            assert connection.poll(START), "a process did not start"
            connection.recv()

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(Exception):
                process.kill()
        self.processes, self.connections = [], []


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if name == "gradient":
        return torch.stack(parts).sum(0)
    if name in ("loss", "aux_loss") or name.startswith("router_logits"):
        for part in parts[1:]:
            torch.testing.assert_close(part, parts[0])
        return parts[0]
    return torch.cat(parts, 1)


RANKS = Ranks()
atexit.register(RANKS.stop)
