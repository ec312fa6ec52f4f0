"""The error for input that the user can mend."""


class InputError(ValueError):
    """Input the user can mend; the message is one line that names the file, row and field and says what to do."""
