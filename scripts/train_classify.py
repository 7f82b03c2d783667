"""Fine-tune a model, short or converted, to classify long documents: the same as `longattn train classify`.

python scripts/train_classify.py --model MODEL --data reviews.csv --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_classify.py --model MODEL --data reviews.csv --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "classify")

if __name__ == "__main__":
    sys.exit(main())
