"""CoLA: bottleneck auto-encoders (arXiv 2502.10940)."""
