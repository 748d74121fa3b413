"""Component 2a-2b of arXiv 2310.02238."""
