"""Fine-tune a model, short or converted, for multiple choice over long documents: the same as `longattn train choice`.

python scripts/train_choice.py --model MODEL --data race.jsonl --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_choice.py --model MODEL --data race.jsonl --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "choice")

if __name__ == "__main__":
    sys.exit(main())
