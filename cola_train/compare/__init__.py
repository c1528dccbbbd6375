"""Methods beside each other: a folder with a plan, a ledger of what has run, and a report."""
