"""Continue training an encoder on long text.

The model learns to predict masked tokens.
"""

from functools import partial

from hf_longattn.training.lm import ARGUMENTS as ARGUMENTS
from hf_longattn.training.lm import train_lm

main = partial(train_lm, "mlm")
