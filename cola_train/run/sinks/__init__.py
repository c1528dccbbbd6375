"""Where a run's figures go beside its own folder: a module for each service."""
