"""Fine-tune a model, short or converted, on extractive question answering in SQuAD's shape.

    python scripts/train_qa.py --config configs/qa_reference_512.yaml
    python scripts/train_qa.py --model my-long-model --data my_squad.json --epochs 2 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_qa.py --model ... --data docstring lookup --output trained

Recipes in YAML hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hf_longattn  # registers the long models with AutoModel
from hf_longattn.errors import LongAttentionError
from hf_longattn.hub import write_model_card
from hf_longattn.training.qa_finetune import describe_training, finetune_qa
from hf_longattn.training.qa_settings import QASettings
from hf_longattn.training.settings import parse_settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        settings = parse_settings(QASettings, sys.argv[1:] if arguments is None else arguments, __doc__.split("\n\n")[0])
        print(f"hf_longattn {hf_longattn.__version__}: training {settings.model} on {', '.join(settings.data)}", file=sys.stderr)
        log = finetune_qa(settings)
        if int(os.environ.get("RANK", "0")) == 0:
            base = settings.model if not Path(settings.model).exists() else None
            write_model_card(settings.output, base_model=base, training=describe_training(log))
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {settings.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
