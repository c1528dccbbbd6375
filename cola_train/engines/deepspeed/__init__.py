"""DeepSpeed's ZeRO behind the `Engine` protocol. Importing this package imports no DeepSpeed."""
