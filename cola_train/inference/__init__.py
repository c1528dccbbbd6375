"""Using a model: sampling text."""
