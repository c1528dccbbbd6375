"""The command lines, each a Hydra app over the same configs."""
