"""What engines share: the call, the batch, the cache, what is sharded across processes, and paths for every device."""
