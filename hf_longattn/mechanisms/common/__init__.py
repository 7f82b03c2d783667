"""Shared parts of mechanisms: base class, options, registry, notation for members, building blocks."""
