"""Code shared by the kinds of input."""
