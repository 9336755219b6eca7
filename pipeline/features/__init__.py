"""Features of a frozen vision tower on disk: computed once by a command, read instead of pixels by training."""
