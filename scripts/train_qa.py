"""Fine-tune a model, short or converted, for extractive question answering: the same as `longattn train qa`.

python scripts/train_qa.py --model MODEL --data my_squad.json --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_qa.py --model MODEL --data my_squad.json --output trained
"""

from __future__ import annotations

import sys

from hf_longattn.cli.train import qa as main

if __name__ == "__main__":
    sys.exit(main())
