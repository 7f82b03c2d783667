"""Attention transfer: teach a converted model's mechanisms to give what softmax attention gave, then fine-tune it.

    python scripts/distill_attention.py --model my-linear-model --text my_texts/ --output trained
    python scripts/distill_attention.py --model bert-base-uncased --mechanism hedgehog --text my_texts/ --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/distill_attention.py --model my-linear-model --text my_texts/ --output trained

Stage 1 trains the mechanisms of all layers in one pass of the frozen original; stage 2 fine-tunes by the language-model loss with
LoRA, or with --full all parameters (Zhang et al. 2024, LoLCATs). Recipes in YAML (--config) hold the same names; what is given on the
command line wins. A run with --save-steps that was stopped goes on with --resume.
"""

from __future__ import annotations

import sys

from hf_longattn.training.command import run_training
from hf_longattn.training.transfer.report import describe_transfer, markdown
from hf_longattn.training.transfer.run import transfer_attention
from hf_longattn.training.transfer.settings import TransferSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(TransferSettings, arguments, __doc__, train=transfer_attention, card=describe_transfer, result=markdown)


if __name__ == "__main__":
    sys.exit(main())
