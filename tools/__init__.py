"""Scripts for maintainers, run from a checkout: `python -m tools.update_docs`."""
