"""A family of models: its entry, config, lengths, sliding windows, and registration with transformers."""
