"""What a model still knows, and whether it is still a language model: before, after, and on the way."""
