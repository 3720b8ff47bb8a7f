"""The one exception for bad input: what was asked, what was found, what to do."""


class InputError(ValueError):
    """The caller's data, path or model cannot be used as asked. The command line prints it as one line."""
