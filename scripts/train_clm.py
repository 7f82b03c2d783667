"""Continue training a decoder on long text: the same as `longattn train clm`.

python scripts/train_clm.py --model MODEL --text my_texts/ --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_clm.py --model MODEL --text my_texts/ --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "clm")

if __name__ == "__main__":
    sys.exit(main())
