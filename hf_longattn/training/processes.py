"""Several training processes: when one ends, the others end with one sentence.

Launchers end the others silently, and gloo reports a closed connection.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from hf_longattn.errors import CheckpointError, LongAttentionError
from hf_longattn.training.checkpoints import newest_checkpoint

CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed")
"""gloo's messages about a closed connection."""


class LostProcessError(LongAttentionError):
    """Another process of the training has ended."""


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def how_to_resume(folder: Path) -> str:
    """The saved checkpoint in ``folder``, and the advice to resume."""
    with suppress(CheckpointError):
        if (newest := newest_checkpoint(folder, resumes=False)) is not None:
            return f"the latest complete checkpoint is {newest}; run again with --resume"
    return "no checkpoint had been written, so run again from the beginning, with --overwrite"


@contextmanager
def sentence_if_lost(folder: Path) -> Iterator[None]:
    """Turn a closed connection or a launcher's signal into one sentence that says how to resume.

    Raises:
        LostProcessError: another process has ended.
    """
    if not is_distributed():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise LostProcessError(
            f"Received {signal.Signals(number).name}, which launchers send when another process ends: {how_to_resume(folder)}."
        )

    earlier_handler = signal.signal(signal.SIGTERM, ended) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except LongAttentionError:
        raise
    except (RuntimeError, OSError) as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in CLOSED):
            raise
        raise LostProcessError(f"Another process of the training has ended: {how_to_resume(folder)}.") from error
    finally:
        if earlier_handler is not None:
            signal.signal(signal.SIGTERM, earlier_handler)


def hard_exit(code: int = 1) -> NoReturn:
    """End this process at once. Destroying a process group without its other processes may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
