"""Continue training a converted model on long text, by the objective of its head: masked tokens for encoders, next tokens for decoders.

    python scripts/train_lm.py --model my-long-model --text my_texts/ --epochs 1 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_lm.py --model my-long-model --text my_texts/ --output trained

Every option of transformers' TrainingArguments is available. Recipes in YAML (--config) use the same names; the command line wins.
train_mlm.py and train_clm.py do the same for one objective, and refuse models of the other kind.
"""

from __future__ import annotations

import sys

from hf_longattn.training.args import LMTrainingArguments
from hf_longattn.training.lm import describe_lm_result, finetune_lm
from hf_longattn.training.training_loop import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(LMTrainingArguments, arguments, __doc__, train=finetune_lm, result=describe_lm_result)


if __name__ == "__main__":
    sys.exit(main())
