"""Modalities of input, one file each. Each implements the contract in :mod:`.modality`."""
