"""Continue training a model on long text: the same as `longattn train lm`.

python scripts/train_lm.py --model MODEL --text my_texts/ --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_lm.py --model MODEL --text my_texts/ --output trained
"""

from __future__ import annotations

import sys

from hf_longattn.cli.train import lm as main

if __name__ == "__main__":
    sys.exit(main())
