"""A long checkpoint as one graph: ONNX, or a program of torch.export."""
