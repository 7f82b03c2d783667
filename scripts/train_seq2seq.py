"""Fine-tune an encoder-decoder, short or converted, to summarise long documents: the same as `longattn train seq2seq`.

python scripts/train_seq2seq.py --model MODEL --data papers.jsonl --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_seq2seq.py --model MODEL --data papers.jsonl --output trained
"""

from __future__ import annotations

import sys

from hf_longattn.cli.train import seq2seq as main

if __name__ == "__main__":
    sys.exit(main())
