"""HOW attention runs fast. Each file is an engine: it says what it computes, and chooses a path from the table in `dispatch`."""
