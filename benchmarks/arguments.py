"""`key=value` arguments of a benchmark, read into its frozen options.

Owns the reading and the words of its refusals; each benchmark owns its keys and their defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Duration = Annotated[float, msgspec.Meta(gt=0)]

S = TypeVar("S", bound=msgspec.Struct)


class BadArgument(SystemExit):
    """Told to the user as it is, without a traceback."""


def read_arguments(kind: type[S], arguments: Sequence[str]) -> S:
    """Raises BadArgument naming the key."""
    known = kind.__struct_fields__
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise BadArgument(f"unknown argument {key!r}: {hint}")
        if not equals:
            raise BadArgument(f"argument {key!r} has no value: write {key}=VALUE")
        given[key] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadArgument(f"wrong argument: {error}") from None


def chosen(key: str, given: str, known: Iterable[str]) -> list[str]:
    """The names of a list, as given. Raises BadArgument."""
    names, known = given.split(","), list(known)
    if wrong := [name for name in names if name not in known]:
        raise BadArgument(f"{key}: {wrong[0]!r} is not one of {', '.join(known)}")
    return names


def numbers(key: str, given: str) -> list[float]:
    """Those of a list. Raises BadArgument."""
    try:
        return msgspec.convert(given.split(","), list[Duration], strict=False)
    except msgspec.ValidationError:
        raise BadArgument(f"{key}: {given!r} is not a list of numbers above 0") from None


def counts(key: str, given: str) -> list[int]:
    """Those of a list. Raises BadArgument."""
    try:
        return msgspec.convert(given.split(","), list[Count], strict=False)
    except msgspec.ValidationError:
        raise BadArgument(f"{key}: {given!r} is not a list of whole numbers above 0") from None
