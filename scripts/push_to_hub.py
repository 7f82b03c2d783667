#!/usr/bin/env python
"""Upload a model, its card and its code to the Hub: the same as `longattn push`, with the same flags."""

from __future__ import annotations

import sys

from hf_longattn.cli import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
