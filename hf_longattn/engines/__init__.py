"""HOW attention runs fast: one file per engine, which says what it computes and chooses the path; the table of paths is `dispatch`."""
