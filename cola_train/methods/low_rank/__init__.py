"""Plain low rank, the control that shows what CoLA's SiLU is for; with DLR's expansion."""
