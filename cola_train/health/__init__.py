"""How the bottlenecks of a training do: docs/health.md. Importing this package imports no torch."""

# (figure, projection or "" where it is of a whole block, block) -> value; nan: there is none
Figures = dict[tuple[str, str, int], float]
