"""Code shared by the engines: calls, batches, caches, and paths for every device."""
