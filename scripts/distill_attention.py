"""Attention distillation: teach a converted model's mechanisms to reproduce softmax attention, then fine-tune the model.

    python scripts/distill_attention.py --model my-linear-model --text my_texts/ --output trained
    python scripts/distill_attention.py --model bert-base-uncased --mechanism hedgehog --text my_texts/ --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/distill_attention.py --model my-linear-model --text my_texts/ --output trained

Stage 1 trains the mechanisms of all layers in one pass of the frozen original; stage 2 fine-tunes on the language-model loss, with LoRA or,
with --full, all parameters (Zhang et al. 2024, LoLCATs). Options of transformers' TrainingArguments apply to both stages. Recipes in YAML
(--config) use the same names; the command line wins. --save-steps writes checkpoints, from which --resume continues.
"""

from __future__ import annotations

import sys

from hf_longattn.training.args import DistillationArguments
from hf_longattn.training.attention_distillation.distill import distill_attention, markdown
from hf_longattn.training.training_loop import run_training


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(DistillationArguments, arguments, __doc__, train=distill_attention, result=markdown)


if __name__ == "__main__":
    sys.exit(main())
