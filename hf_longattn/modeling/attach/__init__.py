"""What is put on a model: mechanisms on its attention modules, their weights, memory tokens, and the tokens that are global."""
