"""`update_docs --check` without the families that are derived, each of which imports its model of transformers: half of its time."""

from __future__ import annotations

from scripts.dev.tools import declared, update_docs


def check() -> None:
    """Exit with 1 if a document or a stored declaration is out of date; what is derived counts as it is stored."""
    stored = {name: declared.declared()[name] for name in ("transformers", "derived", "refused", "exports")}
    declared.derived_families = lambda: stored  # type: ignore[assignment]
    raise SystemExit(update_docs.main(["--check"]))
