"""APOLLO: full-rank weights, learning rates by a random projection (arXiv 2412.05270)."""
