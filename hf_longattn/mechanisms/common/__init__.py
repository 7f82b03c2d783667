"""Shared parts of mechanisms: base class, options, registry, building blocks, and parsing of mechanisms nested in
others."""
