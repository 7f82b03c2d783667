"""Kinds of input: one file for each, which says all that the rest of the package needs to know of it (:mod:`.common.base`)."""
