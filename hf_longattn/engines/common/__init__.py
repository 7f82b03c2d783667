"""What engines share: the call, the batch, the table of paths, the cache, and paths for every device."""
