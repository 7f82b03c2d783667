"""What turns a model class of transformers into a Long one; the families, one file each, are in :mod:`hf_longattn.families`."""
