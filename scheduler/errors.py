"""The error for input that the user can fix."""


class InputError(ValueError):
    """Input the user can fix; the message is one line that names the field, the value and what to do."""
