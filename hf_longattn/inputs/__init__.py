"""Kinds of input, one file each. The contract that each file implements is in :mod:`.kind`."""
