"""Training: the reference corpus, its tokenizer, pre-training and fine-tuning. Import the modules themselves."""
