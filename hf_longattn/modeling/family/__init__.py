"""What a family of models is: its entry, its config, its lengths, its own sliding windows, and its place in transformers' tables."""

from ...lazy import public_names

__getattr__, __all__ = public_names(
    __name__,
    {},
    moved=dict.fromkeys(
        ("AttentionNames", "FAMILIES", "Family", "PositionTable", "family_of"),
        "hf_longattn.modeling.family.definition",
    ),
)
