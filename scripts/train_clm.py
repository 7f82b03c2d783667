"""Continue training a converted decoder on long text: predict the next token; with --segments N, segment by segment with a memory.

    python scripts/train_clm.py --model my-long-decoder --text my_texts/ --epochs 1 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_clm.py --model my-long-decoder --text my_texts/ --output trained

Every option of transformers' TrainingArguments is available. Recipes in YAML (--config) use the same names; the command line wins.
"""

from __future__ import annotations

import sys

from hf_longattn.training.args import CLMTrainingArguments
from hf_longattn.training.lm import describe_lm_result, finetune_lm
from hf_longattn.training.training_loop import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(CLMTrainingArguments, arguments, __doc__, train=finetune_lm, result=describe_lm_result)


if __name__ == "__main__":
    sys.exit(main())
