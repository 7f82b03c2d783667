"""Data for training and evaluation: sources, special tokens, token ids, masks, labels, windows and batches.

Below conversion, training and evaluation, which all make their inputs here. Modules that read sources need the extra ``train``.
"""
