"""What a command says where it cannot do its work on this machine."""


class CannotRun(Exception):
    """One line for the user: what was found, what was expected, what to do."""
