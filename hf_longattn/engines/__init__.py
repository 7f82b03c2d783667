"""Fast implementations of attention. Each file is an engine, which chooses a path from the table in `dispatch`."""
