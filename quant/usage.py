"""The error of a user's input, as opposed to a fault of the program. Does not import torch."""


class UsageError(ValueError):
    """A wrong option or input. The message is one line for the user; it names the value and the allowed values.

    Code that reads what users give raises it, and a command ends with its line. Another ValueError is a fault of the
    program and keeps its traceback.
    """
