"""Full-rank pre-training, the baseline."""
