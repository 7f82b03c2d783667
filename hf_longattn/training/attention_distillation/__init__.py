"""Attention distillation in two stages (Zhang et al. 2024, LoLCATs): each layer's mechanism first learns to reproduce softmax attention,
then the model is fine-tuned on its language-model loss, the original's predictions (Goldstein et al. 2025, RADLADS) or both.

matching    stage 1: mechanisms beside softmax attention
teacher     stage 2 against the original
layers      layers that keep softmax attention
rates       learning rates that are tried before a stage
student     the model that is trained; trainer, distill: a run
"""
