"""Fine-tune an encoder-decoder, short or converted, to summarise long documents: the same as `longattn train seq2seq`.

python scripts/train_seq2seq.py --model MODEL --data papers.jsonl --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_seq2seq.py --model MODEL --data papers.jsonl --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "seq2seq")

if __name__ == "__main__":
    sys.exit(main())
