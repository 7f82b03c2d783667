"""Attention distillation in two stages (Zhang et al. 2024, LoLCATs): each layer's mechanism first learns to reproduce softmax attention,
then the model is fine-tuned on its language-model loss, the original's predictions (Goldstein et al. 2025, RADLADS) or both.

stages      both stages of a run, and its report
matching    stage 1: mechanisms next to softmax attention
teacher     stage 2 against the original
layers      layers that keep softmax attention
student     the model that is trained
trainer     the Trainer of both stages
"""
