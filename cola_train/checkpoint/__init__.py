"""Checkpoints: saved while training goes on, verified, loaded on any number of processes."""
