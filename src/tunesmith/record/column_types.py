"""Types of columns that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, types

from tunesmith.errors import RequestError

#: A whole number of 64 bits; SQLite counts up on its own only in a column that is called INTEGER.
Whole = BigInteger().with_variant(Integer(), "sqlite")


class Text(types.TypeDecorator[str]):
    """Text of any length. What PostgreSQL can't keep is refused on both databases, as a mistake of the caller's."""

    impl = types.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Refuse the character NUL and half characters.

        Raises:
            RequestError: the text holds one.
        """
        if value is not None and not is_storable(value):
            raise RequestError(
                "A text holds a character that can't be stored: NUL or half of a surrogate pair.",
                fix="Remove it from the text.",
                code="invalid_text",
            )
        return value


class Json(types.TypeDecorator[Any]):
    r"""A JSON value, kept as text: keys keep their order, and every string that JSON can write is kept.

    None is SQL's NULL. PostgreSQL's own JSON would refuse `\u0000` and forget the order of keys.
    """

    impl = types.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Write the value.

        Raises:
            ValueError: a number is infinite or not a number.
        """
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's signature
        """Read the value."""
        return None if value is None else json.loads(value)


def is_storable(text: str) -> bool:
    """Whether both databases can keep a text, so that there may be a row with it."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
