"""Source and result as models: loaded through transformers' own doors, and called on a text."""
