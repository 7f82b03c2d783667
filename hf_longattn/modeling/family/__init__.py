"""What a family of models is: its entry, its config, its lengths, its own sliding windows, and its place in transformers' tables."""
