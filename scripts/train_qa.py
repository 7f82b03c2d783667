"""Fine-tune a model, short or converted, for extractive question answering: the same as `longattn train qa`.

python scripts/train_qa.py --model MODEL --data my_squad.json --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_qa.py --model MODEL --data my_squad.json --output trained

`--data program lookup`, tasks of scripts/dev/studies/, are trained by `python -m scripts.dev.studies.qa_finetune`, which has more flags.
"""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path

from hf_longattn.cli.train import train

REFERENCE_TASKS = {"program", "lookup"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    data = takewhile(lambda word: not word.startswith("--"), typed[typed.index("--data") + 1 :] if "--data" in typed else [])
    if REFERENCE_TASKS.isdisjoint(data):
        return train("qa", typed)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts.dev is part of the checkout, not of the installed package
    from scripts.dev.studies.qa_finetune import main as train_reference_tasks

    return train_reference_tasks(typed)


if __name__ == "__main__":
    sys.exit(main())
