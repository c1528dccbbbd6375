"""Singular values of what flows through a model's linears, and the ranks that these would need."""
