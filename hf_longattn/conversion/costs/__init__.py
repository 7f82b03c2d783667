"""What a model costs at each length and keeps while it decodes, counted from its shape."""
