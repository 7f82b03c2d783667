"""Teach a converted model's mechanisms to reproduce softmax attention, then fine-tune it: the same as `longattn train distill`.

python scripts/distill_attention.py --model MODEL --text my_texts/ --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/distill_attention.py --model MODEL --text my_texts/ --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "distill")

if __name__ == "__main__":
    sys.exit(main())
