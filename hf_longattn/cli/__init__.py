"""The command line. The files here parse and print; the work is done by the packages of the same names.

Exit codes: 0 done, 1 refused or failed with one sentence on stderr, 2 wrong usage, 130 interrupted with Ctrl-C.
"""

from .app import app, main

__all__ = ["app", "main"]
