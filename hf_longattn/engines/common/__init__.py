"""Code shared by the engines: calls, batches, caches, sharding, and paths for every device."""
