"""Names under which this package enters tables of the whole process: transformers' attention functions and cache layers, torch's operators;
and the Hub's.

A model that was pushed with its code (:func:`hf_longattn.hub.bundle_remote_code`) brings a copy of this package, perhaps of another
version. Every copy has names of its own, so that several of them work in one process.
"""

from __future__ import annotations

import hashlib

PLAIN_BACKEND = "longattn"
"""What users type as ``attn_implementation``; it means the copy that the model comes from."""

COPY = "" if __package__ == "hf_longattn" else f"_{hashlib.sha256(str(__package__).encode()).hexdigest()[:8]}"
BACKEND = PLAIN_BACKEND + COPY
"""The name of the attention function and the mask function, and how the names of cache layer types begin."""
OPERATORS = f"hf_longattn{COPY}"
"""The namespace of torch operators."""
INSTALL = "`pip install .` in a clone of the hf_longattn repository: it is not on a package index yet"
"""How to install this package, for cards and messages."""
CLONE = "in a clone of the hf_longattn repository (the scripts are not installed with the package)"
"""Where commands that begin with `python scripts/` are run."""
TAGS = ("hf_longattn", "long-context")
"""Of every long model on the Hub."""
