"""Fine-tune a model, short or converted, to classify long documents: the same as `longattn train classification`.

python scripts/train_classification.py --model MODEL --data reviews.csv --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_classification.py --model MODEL --data reviews.csv --output trained
"""

from __future__ import annotations

import sys

from hf_longattn.cli.train import classification as main

if __name__ == "__main__":
    sys.exit(main())
