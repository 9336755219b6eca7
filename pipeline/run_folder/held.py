"""What is raised when a run folder is somebody else's."""


class RunHeldError(RuntimeError):
    """Another process is running in this run folder."""


class LeaseLostError(RuntimeError):
    """A newer attempt has taken the run folder over; this one must not write to it any more."""
