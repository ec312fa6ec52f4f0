"""The error for input that the user can mend."""


class InputError(ValueError):
    """Input the user can mend; the message is one line that names the field, the value and what to do."""
