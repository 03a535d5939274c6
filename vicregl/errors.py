"""The errors of the library. Their text says what was given, what was expected, what is allowed."""

from __future__ import annotations


class UserError(Exception):
    """Something that the caller can correct. Programs built on the library derive their own errors from it."""

    exit_code = 2  # of a command that ends on it


class InvalidInputError(UserError, ValueError):
    """An option, a tensor or a weights file that the library cannot use."""


def require(ok: bool, option: str, value: object, allowed: str) -> None:
    """Raise InvalidInputError that names the option, its value and what is allowed, unless `ok`."""
    if not ok:
        raise InvalidInputError(f"{option} = {value!r} is not possible; allowed: {allowed}")
