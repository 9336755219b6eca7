"""INDEX: which samples exist, where their bytes are, what is unusable and why, and how many tokens each has."""
