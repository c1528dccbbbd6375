"""What a run will cost on machines that are not there: memory, traffic, time. Imports no torch."""
