"""What a source is: its class and config, and the long class that takes its weights."""
