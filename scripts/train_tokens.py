"""Fine-tune a model, short or converted, to tag the words of long documents: the same as `longattn train tokens`.

python scripts/train_tokens.py --model MODEL --data train.conll --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_tokens.py --model MODEL --data train.conll --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "tokens")

if __name__ == "__main__":
    sys.exit(main())
