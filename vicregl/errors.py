"""The errors of the library. Their text says what was given, what was expected and what is allowed."""

from __future__ import annotations


class UserError(Exception):
    """An error that the caller can correct. Programs built on the library derive their own errors from it."""

    exit_code = 2  # of a command that ends on it

    def __str__(self) -> str:
        """Return the message without the traceback that torch's DataLoader puts before an error of a worker."""
        text = super().__str__()
        if not text.startswith(f"Caught {type(self).__name__} in DataLoader worker process"):
            return text
        return text.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()


class InvalidInputError(UserError, ValueError):
    """An option, a tensor or a weights file that the library cannot use."""


def require(ok: bool, option: str, value: object, allowed: str) -> None:
    """Raise InvalidInputError that names the option, its value and what is allowed, unless `ok`."""
    if not ok:
        raise InvalidInputError(f"{option} = {value!r} is not possible; allowed: {allowed}")
