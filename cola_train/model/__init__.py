"""The LLaMA decoder and its parts."""
