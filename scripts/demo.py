"""The whole path without a network: all-MiniLM-L6-v2 converted, then long questions: `python scripts/demo.py` or `make
demo`."""

import sys
from pathlib import Path

# scripts.dev is part of the checkout, not of the installed package
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.dev.studies.demo import main

if __name__ == "__main__":
    sys.exit(main())
