"""Prints the help of every task, in a process that imports none of them: ``python -m tests.early_help``."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

from hf_longattn.tasks import evaluated_tasks, task_names, task_summary
from hf_longattn.training.parsing import answer_early


def short_help(task: str, command: str) -> str:
    """What ``longattn train TASK --help`` or ``longattn evaluate TASK --help`` prints."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        answer_early(task, ["--help"], task_summary(task), f"longattn {command} {task}", is_evaluation=command == "evaluate")
    return page.getvalue()


def pages() -> dict[str, Any]:
    """The help of every task by command, and whether torch was imported for it."""
    train = {name: short_help(name, "train") for name in task_names()}
    evaluate = {name: short_help(name, "evaluate") for name in evaluated_tasks()}
    return {"train": train, "evaluate": evaluate, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(pages()))
