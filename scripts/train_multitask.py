"""Train one backbone with several named heads: the same as `longattn train multitask`.

python scripts/train_multitask.py --model MODEL --tasks topic=classify:reviews.csv names=tokens:train.conll --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_multitask.py --model MODEL --tasks ...
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "multitask")

if __name__ == "__main__":
    sys.exit(main())
