#!/usr/bin/env python
"""Turn a short checkpoint into a long one: the same as `longattn convert`, with the same flags."""

from __future__ import annotations

import sys

from hf_longattn.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
