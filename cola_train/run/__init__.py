"""A run beside its mathematics: where it is, whose its folder is, how it ends, what it logs.

Importing this package imports no torch: launch scripts ask `status` when a job is about to end.
"""
