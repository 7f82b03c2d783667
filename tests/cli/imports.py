"""What a command imports; nothing is imported here, so that what it imports is its doing."""

from __future__ import annotations

import json
import runpy
import sys

SLOW = ("torch", "transformers", "datasets", "accelerate")


def list_slow_imports(*lines: str) -> None:
    """Run `python -m hf_longattn LINE` for each line.

    Prints, for each, a line of JSON: its exit code and the slow libraries that are imported by then.
    """
    found = []
    for line in lines:
        sys.argv[1:] = line.split()
        code: object = 0
        try:
            runpy.run_module("hf_longattn", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code or 0
        found.append([line, code, [name for name in SLOW if name in sys.modules]])
    print(json.dumps(found))
