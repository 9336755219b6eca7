"""INDEX: which samples exist, where their bytes lie, what is unusable and why, and how many tokens each has."""
