"""Train a converted decoder further on long text: predict the next token, with --segments N segment by segment with a memory.

    python scripts/train_clm.py --model my-long-decoder --text my_texts/ --epochs 1 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_clm.py --model my-long-decoder --text my_texts/ --output trained

Recipes in YAML (--config) hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import sys

from hf_longattn.training.command import run_training
from hf_longattn.training.lm_finetune import describe_lm_result, describe_lm_training, finetune_lm
from hf_longattn.training.lm_settings import CLMSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(CLMSettings, arguments, __doc__, train=finetune_lm, card=describe_lm_training, result=describe_lm_result)


if __name__ == "__main__":
    sys.exit(main())
