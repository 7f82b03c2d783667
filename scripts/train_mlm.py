"""Continue training an encoder on long text: the same as `longattn train mlm`.

python scripts/train_mlm.py --model MODEL --text my_texts/ --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_mlm.py --model MODEL --text my_texts/ --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "mlm")

if __name__ == "__main__":
    sys.exit(main())
