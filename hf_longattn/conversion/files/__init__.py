"""Files on disk: tensors and JSON read from them and written into them, and a folder put in place in one step."""
