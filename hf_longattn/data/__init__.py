"""Data for training and evaluation: sources, special tokens, token ids, masks, labels, windows and batches.

Conversion, training and evaluation make their inputs here.
"""
