"""Fresh processes without the wait: forked from one that has imported torch and transformers already, and nothing of
this package.

:func:`run_fresh` stands for ``subprocess.run([sys.executable, ...])``: environment, folder, output and exit status are
the process's own. One server serves all workers of a run of pytest; the first call starts it. It is a chain of
processes, one a level of :data:`LEVELS`, each forked from the one before it. A test about what an import does asks for
the level that has not imported it; one about the interpreter itself (its flags, PYTHONHASHSEED) needs ``subprocess``.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
LEVELS: dict[str, tuple[str, ...]] = {
    "interpreter": ("typer", "rich.console", "yaml", "numpy", "pyarrow", "pandas"),
    "torch": ("torch", "torch._dynamo", "safetensors.torch", "tokenizers"),
    "transformers": (
        "datasets",
        "accelerate",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.trainer",
    ),
}
"""What the process of each level has imported, with all levels before it."""
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_")
"""Variables that the libraries of the last level read when they are imported: where they differ, the level before it
serves."""
READ_AT_CALL = ("HF_TOKEN", "HF_LONGATTN_", "TORCHINDUCTOR_CACHE_DIR")
READ_AT_START = ("PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "OMP_", "TORCH")
ENVIRONMENT = dict(os.environ)
SECONDS_IDLE = 900


def run_fresh(
    *command: Callable[..., object] | str | Path,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    level: str = "transformers",
    timeout: float = 280,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has imported nothing of this package.

    Args:
        command: what python takes, ``"-m", module, *arguments``, ``"-c", code, *arguments`` or ``script, *arguments``;
            or a function of a module that the process imports, and its arguments, which it gets as strings.
        env: the whole environment; by default this process's.
        cwd: the working directory; by default this process's.
        level: the last of :data:`LEVELS` that it may have imported.
        timeout: seconds after which it is killed.

    Raises:
        ValueError: a variable differs that a running interpreter does not read again.
        subprocess.TimeoutExpired: it took longer.
    """
    variables = dict(os.environ if env is None else env)
    if late := [name for name in _differing(variables, READ_AT_START) if not name.startswith(READ_AT_CALL)]:
        raise ValueError(
            f"{', '.join(late)} would not be read by a process that is forked; start one with subprocess.run"
        )
    if level == "transformers" and any(
        not name.startswith(READ_AT_CALL) for name in _differing(variables, READ_AT_IMPORT)
    ):
        level = "torch"
    first, *rest = command
    words = [f"{first.__module__}:{first.__qualname__}" if callable(first) else str(first), *map(str, rest)]
    request = {"words": words, "calls": callable(first), "environment": variables, "folder": str(cwd or Path.cwd())}
    with open(os.devnull) as typed, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _connected(level) as connection:
            socket.send_fds(connection, [b"."], [typed.fileno(), out.fileno(), err.fileno()])
            connection.sendall(json.dumps(request).encode() + b"\n")
            answers = connection.makefile()
            process = json.loads(answers.readline() or "0")
            connection.settimeout(timeout)
            try:
                status = answers.readline()
            except TimeoutError:
                os.killpg(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout) from None
        if not status:
            raise RuntimeError(f"the server of fresh processes ended: {(_place() / 'log').read_text()[-2000:]}")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, int(status), out.read().decode(), err.read().decode())


def _differing(variables: Mapping[str, str], prefixes: tuple[str, ...]) -> Iterator[str]:
    for name in sorted({*variables, *ENVIRONMENT}):
        if name.startswith(prefixes) and variables.get(name) != ENVIRONMENT.get(name):
            yield name


def _controller() -> int:
    """The process of the run: pytest itself, of which xdist's workers are children."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def _place() -> Path:
    return Path(tempfile.gettempdir()) / f"warm-{os.getuid()}-{_controller()}"


def _connected(level: str) -> socket.socket:
    """A connection with the server of a level, which is started if it does not run."""
    place = _place()
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(2):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(place / level))
            except OSError:
                connection.close()
                _start(place)
            else:
                return connection
    raise RuntimeError(f"the server of fresh processes does not start: {(place / 'log').read_text()[-2000:]}")


def _start(place: Path) -> None:
    """Start the server with sockets that listen already, so that calls wait for its imports."""
    listening = []
    for level in LEVELS:
        (place / level).unlink(missing_ok=True)
        listening.append(socket.socket(socket.AF_UNIX))
        listening[-1].bind(str(place / level))
        listening[-1].listen()
    numbers = [entrance.fileno() for entrance in listening]
    command = [sys.executable, __file__, str(_controller()), str(place), *map(str, numbers)]
    with (place / "log").open("w") as log:
        subprocess.run(
            command,
            env=ENVIRONMENT,
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=True,
        )
    for entrance in listening:
        entrance.close()


# What runs in the server.


def main(controller: str, place: str, *numbers: str) -> None:
    """Stay as a process that nobody waits for, until the run has ended."""
    if os.fork():
        return
    sys.path.remove(str(Path(__file__).parent))
    listening = [socket.socket(fileno=int(number)) for number in numbers]
    for modules in LEVELS.values():
        for module in modules:
            importlib.import_module(module)
        mine, *listening = listening
        if not listening or os.fork():
            for later in listening:
                later.close()
            serve(mine, int(controller))
            shutil.rmtree(place, ignore_errors=True)
            return
        mine.close()


def serve(listening: socket.socket, controller: int) -> None:
    """Fork a process for every connection until the run has ended."""
    import gc

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing is asked about those that answer
    listening.settimeout(1)
    last = time.monotonic()
    while time.monotonic() - last < SECONDS_IDLE and _runs(controller):
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        last = time.monotonic()
        with connection:
            if not os.fork():
                listening.close()
                answer(connection)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def answer(connection: socket.socket) -> NoReturn:
    """Run what a connection asks for in a child, and send the child's number and its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if not child:
        connection.close()
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        run(**request)
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run(words: list[str], calls: bool, environment: dict[str, str], folder: str) -> NoReturn:
    """Do what a new interpreter does: environment, path, program, exit status."""
    import atexit
    import threading

    outside = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    inside = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*inside, *(entry for entry in sys.path if entry not in outside)]
    status = 0
    try:
        _program(words, calls)
    except SystemExit as ended:
        if isinstance(ended.code, int) or ended.code is None:
            status = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _program(words: list[str], calls: bool) -> None:
    import runpy

    first, *arguments = words
    if calls:
        sys.path.insert(0, str(ROOT))
        module, _, name = first.partition(":")
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        target(*arguments)
    elif first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv[:] = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv[:] = words
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
