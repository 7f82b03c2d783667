"""What the kinds of input share."""
