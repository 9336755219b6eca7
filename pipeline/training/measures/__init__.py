"""What is counted and written down about each step: the ledger, metrics, rates, records of odd steps."""
