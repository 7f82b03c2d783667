"""What a checkout runs: see README.md."""
