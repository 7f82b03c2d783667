"""Fine-tune a model, short or converted, on extractive question answering in SQuAD's shape.

    python scripts/train_qa.py --config research/configs/qa_reference_512.yaml
    python scripts/train_qa.py --model my-long-model --data my_squad.json --epochs 2 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_qa.py --model ... --data docstring lookup --output trained

Recipes in YAML hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # research/ is part of the checkout, not of the installed package

from hf_longattn.training.command import run_training
from research.qa_finetune import describe_training, finetune_qa
from research.qa_settings import QASettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(QASettings, arguments, __doc__, train=finetune_qa, card=describe_training)


if __name__ == "__main__":
    sys.exit(main())
