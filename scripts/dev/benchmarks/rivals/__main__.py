"""``python -m scripts.dev.benchmarks.rivals`` from a checkout."""

from .run import main

if __name__ == "__main__":
    raise SystemExit(main())
