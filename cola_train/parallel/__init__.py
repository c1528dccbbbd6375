"""What is done to a finished model from outside, in this order: recompute, compile, shard.

Importing this package imports no torch: a topology is a plain value.
"""
