"""A model in other programs' formats: exported folders, and what is imported."""
