"""Continue training a decoder on long text.

It learns to predict the next token. With ``--segments N`` each document is read segment by segment with the model's
memory.
"""

from functools import partial

from hf_longattn.training.lm import ARGUMENTS as ARGUMENTS
from hf_longattn.training.lm import train_lm

main = partial(train_lm, "clm")
