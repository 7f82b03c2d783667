"""Everything that is decided before a byte is written: attention, lengths, positions, and what becomes of every tensor."""
