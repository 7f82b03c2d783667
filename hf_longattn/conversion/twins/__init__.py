"""Native twins: stock architectures of transformers that compute the same as a long model. One file each."""
