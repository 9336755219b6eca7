"""Features of a frozen vision tower on disk: computed once by a command, read in the place of pixels by training."""
