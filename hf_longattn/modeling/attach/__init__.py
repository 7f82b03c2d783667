"""Attaches mechanisms to a model's attention modules, with their weights, memory tokens and global tokens."""
