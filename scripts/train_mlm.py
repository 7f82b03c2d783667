"""Continue training an encoder on long text: the same as `longattn train mlm`.

python scripts/train_mlm.py --model MODEL --text my_texts/ --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_mlm.py --model MODEL --text my_texts/ --output trained
"""

from __future__ import annotations

import sys

from hf_longattn.cli.train import mlm as main

if __name__ == "__main__":
    sys.exit(main())
