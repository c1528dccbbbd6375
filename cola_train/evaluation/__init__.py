"""How good a model is: validation loss, bits per byte."""
