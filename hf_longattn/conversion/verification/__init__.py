"""Source and written result compared: tensors, outputs, gradients, loss."""
