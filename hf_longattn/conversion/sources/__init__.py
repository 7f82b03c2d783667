"""Where a checkpoint comes from: a folder, the Hub, a GGUF file, an adapter or a sentence-transformers folder, opened as a `Source`."""

from __future__ import annotations
