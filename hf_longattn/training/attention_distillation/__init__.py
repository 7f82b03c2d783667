"""Attention distillation in two stages (Zhang et al. 2024, LoLCATs): each layer's mechanism first learns to reproduce softmax attention,
then the model is fine-tuned on its language-model loss."""
