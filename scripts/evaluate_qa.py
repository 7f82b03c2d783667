"""Score models on long question answering, with baselines: `python scripts/evaluate_qa.py --data my_squad.json --long "tuned=FOLDER@0"`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts.dev is part of the checkout, not of the installed package

from scripts.dev.studies.evaluate_qa import main

if __name__ == "__main__":
    sys.exit(main())
