"""Was renamed; says what to type."""

import sys

sys.exit("Error: this script is now a task; type python scripts/train.py linearise, or longattn train linearise.")
