"""Native twins: stock architectures of transformers that compute what a long model computes: one file each."""
