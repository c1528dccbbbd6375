"""ReLoRA (arXiv 2307.05695): LoRA whose factors are merged into the weight again and again."""
