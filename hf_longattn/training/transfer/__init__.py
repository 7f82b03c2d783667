"""Attention transfer (Zhang et al. 2024, LoLCATs): each layer's mechanism first learns to give what softmax attention gave, then the
model is fine-tuned by its language-model loss."""
