"""The project's own studies, run from a checkout: the reference corpus and its tasks, pre-training, the reference reader, tables."""
