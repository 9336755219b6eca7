"""A run from config to result, on Ray or in this process: what happens before, around and after training."""
