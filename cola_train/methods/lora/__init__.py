"""LoRA from scratch (arXiv 2106.09685): low-rank factors are trained beside a frozen weight."""
