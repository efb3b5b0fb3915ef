"""What can go wrong at this machine's kernel."""


class KernelError(Exception):
    """What failed, on what, why, and what to do."""
