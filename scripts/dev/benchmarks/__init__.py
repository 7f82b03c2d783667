"""Compare implementations of attention and of whole models, one small file each; outputs are verified before anything
is timed."""
