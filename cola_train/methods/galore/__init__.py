"""GaLore: full-rank weights, moments of projected gradients (arXiv 2403.03507)."""
