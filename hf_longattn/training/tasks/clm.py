"""Continue training a decoder on long text.

It learns to predict the next token. With ``--segments N`` each document is read segment by segment with the model's memory.
"""

import sys
from functools import partial

from hf_longattn.training.lm import ARGUMENTS as ARGUMENTS
from hf_longattn.training.lm import train_lm
from hf_longattn.training.run import run_task

main = partial(train_lm, "clm")

if __name__ == "__main__":
    sys.exit(run_task(sys.modules["__main__"], sys.argv[1:]))
