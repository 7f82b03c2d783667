"""Train a model, short or converted: the same as `longattn train`.

python scripts/train.py qa --model MODEL --data my_squad.json --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train.py mlm --model MODEL --data my_texts/ --output trained
python scripts/train.py --help
"""

from __future__ import annotations

import sys

from hf_longattn.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
