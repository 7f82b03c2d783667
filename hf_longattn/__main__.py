"""``python -m hf_longattn``: the same as ``longattn``."""

from .cli import main

if __name__ == "__main__":
    main()
