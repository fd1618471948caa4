"""The error of a user, not of the program. Does not import torch."""


class UsageError(ValueError):
    """A wrong option or input; the message is one line for the user and names the value and what there is instead.

    Whoever reads what users give raises it, and a command ends with its line. Another ValueError is a fault of the
    program and keeps its traceback.
    """
