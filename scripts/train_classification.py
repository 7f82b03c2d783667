"""Fine-tune a model, short or converted, to classify long documents.

    python scripts/train_classification.py --model bert-4096 --data reviews.csv --epochs 3 --output bert-4096-reviews
    python scripts/train_classification.py --model bert-4096 --data papers/train --validation papers/test --output bert-4096-papers
    accelerate launch --multi_gpu --num_processes 2 scripts/train_classification.py --model bert-4096 --data reviews.jsonl --output trained

Every option of transformers' TrainingArguments is available. Recipes in YAML (--config) use the same names; the command line wins.
"""

from __future__ import annotations

import sys

from hf_longattn.training.args import ClassificationTrainingArguments
from hf_longattn.training.classification import describe_classification_result, finetune_classification
from hf_longattn.training.training_loop import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(
        ClassificationTrainingArguments, arguments, __doc__, train=finetune_classification, result=describe_classification_result
    )


if __name__ == "__main__":
    sys.exit(main())
