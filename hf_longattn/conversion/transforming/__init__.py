"""What goes into the folder of the result: values of tensors, and the files beside them."""
