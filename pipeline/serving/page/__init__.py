"""The chat page: three static files of our own, and what they ask for besides answers."""
