"""Train embeddings of long documents or a reranker: the same as `longattn train embed`.

python scripts/train_embed.py --model MODEL --data pairs.jsonl --output trained
accelerate launch --multi_gpu --num_processes 2 scripts/train_embed.py --model MODEL --data pairs.jsonl --output trained
"""

from __future__ import annotations

import sys
from functools import partial

from hf_longattn.cli.train import train

main = partial(train, "embed")

if __name__ == "__main__":
    sys.exit(main())
