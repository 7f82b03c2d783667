"""Train a converted model further on long text: masked tokens for encoders, next tokens for decoders.

    python scripts/train_lm.py --model my-long-model --text my_texts/ --epochs 1 --output trained
    accelerate launch --multi_gpu --num_processes 2 scripts/train_lm.py --model my-long-model --text corpus --output trained

Recipes in YAML (--config) hold the same names; what is given on the command line wins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hf_longattn  # registers the long models with AutoModel
from hf_longattn.errors import LongAttentionError
from hf_longattn.hub import write_model_card
from hf_longattn.training.lm_finetune import describe_lm_training, finetune_lm
from hf_longattn.training.lm_settings import LMSettings
from hf_longattn.training.settings import parse_settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    try:
        settings = parse_settings(LMSettings, sys.argv[1:] if arguments is None else arguments, __doc__.split("\n\n")[0])
        print(f"hf_longattn {hf_longattn.__version__}: training {settings.model} on {', '.join(settings.text)}", file=sys.stderr)
        log = finetune_lm(settings)
        if int(os.environ.get("RANK", "0")) == 0:
            base = settings.model if not Path(settings.model).exists() else None
            write_model_card(settings.output, base_model=base, training=describe_lm_training(log))
    except LongAttentionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    loss = log["held_out_loss"]
    print(f"held-out loss {loss['before']:.3f} before, {loss['after']:.3f} after; written to {settings.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
