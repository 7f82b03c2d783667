"""What somebody does who has transformers and not this package; nothing of the project is imported."""

from __future__ import annotations

import sys

import transformers


def load_and_describe(folder: str) -> None:
    """Load a causal model with its tokenizer, run it, and print what they are."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("The boats come home.", return_tensors="pt")).logits
    assert not any(name.startswith("hf_longattn") for name in sys.modules)
    print(type(model).__name__, type(tokenizer).__name__, tokenizer.model_max_length, model.config.n_positions, logits.shape[-1])
