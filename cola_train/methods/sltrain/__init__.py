"""SLTrain: weights that are low rank plus sparse (arXiv 2406.02214)."""
