"""Where a checkpoint comes from: a folder, the Hub, a GGUF file, an adapter, sentence-transformers … One file per format."""
