"""The exceptions that mean: the user can mend this."""


class ForPeople(Exception):  # noqa: N818  (what it is for, not what went wrong)
    """An exception whose message says all that its reader needs; the command line prints it and nothing else."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show of it: the message, and no stack of our own code."""
        return [f"{type(self).__name__}: {self}"]


class InputError(ForPeople, ValueError):
    """Bad input, found before expensive work. The message is one line: the place, the value, the remedy."""


class StorageError(InputError):
    """Storage does not answer, or does not let us read: says nothing of one picture, and all others would fail too."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; where it says nothing, its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
