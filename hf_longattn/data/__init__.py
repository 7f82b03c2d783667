"""Data for conversion, training and evaluation.

The modules read sources, and make token ids with special tokens, masks, labels, windows and batches from them.
"""
