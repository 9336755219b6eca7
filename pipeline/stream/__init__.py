"""STREAM: executes the plan; reads, encodes and delivers rank-steps, through Ray Data or a torch DataLoader."""
