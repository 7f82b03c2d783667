"""Fine-tune a model, short or converted, for extractive question answering on SQuAD-shaped data.

    python scripts/train_qa.py --model bert-4096 --data my_squad.json --epochs 2 --output bert-4096-qa
    accelerate launch --multi_gpu --num_processes 2 scripts/train_qa.py --model bert-4096 --data my_squad.json --epochs 2 --output trained

Every option of transformers' TrainingArguments is available. Recipes in YAML (--config) use the same names; the command line wins.
"""

from __future__ import annotations

import sys

from hf_longattn.training.args import QATrainingArguments
from hf_longattn.training.qa import finetune_qa
from hf_longattn.training.training_loop import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(QATrainingArguments, arguments, __doc__, train=finetune_qa)


if __name__ == "__main__":
    sys.exit(main())
