"""Where checkpoints come from: folders, the Hub, GGUF files, adapters … One file per format."""
