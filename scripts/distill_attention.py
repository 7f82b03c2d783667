"""Attention transfer: teach a converted model's mechanisms to give what softmax attention gave, then fine-tune it.

    python scripts/distill_attention.py --model my-linear-model --text my_texts/ --output trained
    python scripts/distill_attention.py --model bert-base-uncased --mechanism hedgehog --text corpus --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/distill_attention.py --model my-linear-model --text corpus --output trained

Stage 1 trains the mechanisms of all layers in one pass of the frozen original; stage 2 fine-tunes by the language-model loss with
LoRA, or with --full all parameters (Zhang et al. 2024, LoLCATs). Recipes in YAML (--config) hold the same names; what is given on the
command line wins. A run with --save-steps that was stopped goes on with --resume.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hf_longattn  # registers the long models with AutoModel
from hf_longattn.errors import LongAttentionError
from hf_longattn.hub import write_model_card
from hf_longattn.training.settings import parse_settings
from hf_longattn.training.transfer.report import describe_transfer, markdown
from hf_longattn.training.transfer.run import transfer_attention
from hf_longattn.training.transfer.settings import TransferSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        settings = parse_settings(TransferSettings, sys.argv[1:] if arguments is None else arguments, __doc__.split("\n\n")[0])
        if first:
            print(f"hf_longattn {hf_longattn.__version__}: attention transfer of {settings.model}", file=sys.stderr)
        report = transfer_attention(settings)
        if first:
            base = settings.model if not Path(settings.model).exists() else None
            write_model_card(settings.output, base_model=base, training=describe_transfer(report))
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first:
        print(f"{markdown(report)}\nwritten to {settings.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
