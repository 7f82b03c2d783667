"""Scripts for maintainers, run from a checkout: `python -m scripts.dev.tools.update_docs`."""
