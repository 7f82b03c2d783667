"""The command line: `longattn convert | plan | inspect | mechanisms`. Each command is a file here; what it does is elsewhere.

Exit codes: 0 done, 1 refused or failed with one sentence on stderr, 2 wrong usage.
"""

from .app import app, main

__all__ = ["app", "main"]
