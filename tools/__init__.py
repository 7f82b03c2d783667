"""Scripts of those who maintain the project, run from a checkout: `python -m tools.update_docs`."""
