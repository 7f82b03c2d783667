"""Where checkpoints come from: folders, the Hub, adapters … One file per format."""
