"""The tasks of `longattn train`: one module each, found by its file name (:mod:`hf_longattn.training.task`)."""
