"""The options of a run: Hydra composes, `schema` holds them as dataclasses, `checks` refuses."""
