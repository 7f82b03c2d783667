"""Pre-training of the reference checkpoints: small, plain transformers models, trained from scratch on two CPU cores."""
