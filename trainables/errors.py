"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input, found before expensive work. The message is one line: the place, the value, the remedy."""
