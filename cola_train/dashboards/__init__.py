"""Runs, shown: what their folders say, for people. Imports no torch."""
