"""Text in, batches out: sources and tokenizer → shards on disk → dataset → loader.

Importing this package imports nothing else: its options are part of every config.
"""
