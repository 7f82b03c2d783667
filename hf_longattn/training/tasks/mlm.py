"""Continue training an encoder on long text.

It learns to predict masked tokens.
"""

import sys
from functools import partial

from hf_longattn.training.lm import ARGUMENTS as ARGUMENTS
from hf_longattn.training.lm import train_lm
from hf_longattn.training.run import run_task

main = partial(train_lm, "mlm")

if __name__ == "__main__":
    sys.exit(run_task(sys.modules["__main__"], sys.argv[1:]))
