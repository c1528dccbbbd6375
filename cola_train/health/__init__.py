"""How the bottlenecks of a training do: docs/health.md. Importing this package imports no torch."""
