"""Continue training a decoder on long text.

The model learns to predict the next token. With ``--segments N``, it reads each document in segments of N tokens, and
remembers earlier segments.
"""

from functools import partial

from hf_longattn.training.lm import ARGUMENTS as ARGUMENTS
from hf_longattn.training.lm import train_lm

main = partial(train_lm, "clm")
