"""Fine-tune a model, short or converted, to sort long documents into classes.

    python scripts/train_classification.py --model bert-4096 --data reviews.csv --epochs 3 --output bert-4096-reviews
    python scripts/train_classification.py --model bert-4096 --data papers/train --validation papers/test --output bert-4096-papers
    accelerate launch --multi_gpu --num_processes 2 scripts/train_classification.py --model bert-4096 --data reviews.jsonl --output trained

Recipes in YAML (--config) hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import sys

from hf_longattn.training.classification_finetune import describe_classification, describe_classification_result, finetune_classification
from hf_longattn.training.classification_settings import ClassificationSettings
from hf_longattn.training.command import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(
        ClassificationSettings,
        arguments,
        __doc__,
        train=finetune_classification,
        card=describe_classification,
        result=describe_classification_result,
    )


if __name__ == "__main__":
    sys.exit(main())
