"""Conditions: predicates over what a request says of itself.

A condition reads one header, one request parameter or one attribute (a header `X-Attr-<name>`
or a parameter `attr.<name>`) and compares it with equality, set, prefix or order. There is no
regular expression, so no condition can take more than linear time.
A value that is absent, or not a number where order is asked for, never holds.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Final, TypeAlias

from msgspec import Struct

from gateway.core.errors import InvalidRequest

Scalar: TypeAlias = str | int | float | bool
Header: TypeAlias = Callable[[str], str | None]
"""Looks up a request header by its lower-case name."""

MAX_SET: Final = 1000
MAX_TEXT: Final = 1024
MAX_DIGITS: Final = 400
"""Characters of the longest text that is read as a number."""
ATTRIBUTE_HEADER: Final = "x-attr-"
ATTRIBUTE_PARAMETER: Final = "attr."


class Condition(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"in_": "in"}
):
    """One source and one comparison, for example `{"header": "X-Plan", "equals": "gold"}`.

    Text is compared exactly, as the bytes that came; numbers by value. A header is text: in
    `equals` and `in` it equals a number that it spells.
    """

    header: str | None = None
    parameter: str | None = None
    attribute: str | None = None
    equals: Scalar | None = None
    in_: tuple[Scalar, ...] | None = None
    prefix: str | None = None
    less: float | None = None
    at_most: float | None = None
    greater: float | None = None
    at_least: float | None = None


def check_condition(where: str, condition: Condition) -> None:
    """Refuse a condition without exactly one source and one comparison.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    sources = [condition.header, condition.parameter, condition.attribute]
    named = [source for source in sources if source is not None]
    if len(named) != 1 or not 0 < len(named[0]) <= MAX_TEXT:
        message = f"{where}: a condition reads one of 'header', 'parameter' and 'attribute'."
        raise InvalidRequest(message)
    comparisons = [value for value in _comparisons(condition) if value is not None]
    if len(comparisons) != 1:
        message = (
            f"{where}: a condition compares with exactly one of 'equals', 'in', 'prefix', "
            "'less', 'at_most', 'greater' and 'at_least'."
        )
        raise InvalidRequest(message)
    for value in _texts(condition):
        if len(value) > MAX_TEXT:
            message = f"{where}: a compared text has more than {MAX_TEXT} characters."
            raise InvalidRequest(message)
    if condition.in_ is not None and not 0 < len(condition.in_) <= MAX_SET:
        message = f"{where}: 'in' holds 1 to {MAX_SET} values."
        raise InvalidRequest(message)
    numbers = (condition.less, condition.at_most, condition.greater, condition.at_least)
    if any(number is not None and not isfinite(number) for number in numbers):
        message = f"{where}: order is compared with a finite number."
        raise InvalidRequest(message)


def holds(condition: Condition, header: Header, parameters: Mapping[str, Scalar]) -> bool:
    """Whether the request satisfies the condition."""
    value = _read(condition, header, parameters)
    if value is None:
        return False
    if condition.equals is not None:
        return _same(value, condition.equals)
    if condition.in_ is not None:
        return any(_same(value, member) for member in condition.in_)
    if condition.prefix is not None:
        return isinstance(value, str) and value.startswith(condition.prefix)
    return _in_order(condition, value)


def _comparisons(condition: Condition) -> tuple[object, ...]:
    return (
        condition.equals,
        condition.in_,
        condition.prefix,
        condition.less,
        condition.at_most,
        condition.greater,
        condition.at_least,
    )


def _texts(condition: Condition) -> list[str]:
    values: list[Scalar | None] = [condition.equals, condition.prefix, *(condition.in_ or ())]
    return [value for value in values if isinstance(value, str)]


def _read(condition: Condition, header: Header, parameters: Mapping[str, Scalar]) -> Scalar | None:
    if condition.header is not None:
        return header(condition.header.lower())
    if condition.parameter is not None:
        return parameters.get(condition.parameter)
    name = condition.attribute or ""
    stated = header(ATTRIBUTE_HEADER + name.lower())
    return stated if stated is not None else parameters.get(ATTRIBUTE_PARAMETER + name)


def _same(value: Scalar, wanted: Scalar) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        if isinstance(value, str):
            return value.lower() == str(wanted).lower()
        return value is wanted
    if isinstance(value, str) and not isinstance(wanted, str):
        number = _spelled(value)
        return number is not None and number == wanted
    return value == wanted


def _in_order(condition: Condition, value: Scalar) -> bool:
    number = _number(value)
    if number is None:
        return False
    if condition.less is not None:
        return number < condition.less
    if condition.at_most is not None:
        return number <= condition.at_most
    if condition.greater is not None:
        return number > condition.greater
    return condition.at_least is not None and number >= condition.at_least


def _number(value: Scalar) -> float | None:
    """The finite number that a value is or spells; None for anything else."""
    if isinstance(value, bool):
        return None
    number = _spelled(value) if isinstance(value, str) else value
    try:
        return float(number) if number is not None and isfinite(number) else None
    except OverflowError:
        return None


def _spelled(text: str) -> int | float | None:
    """The finite number that a text spells, exact where it is an integer: ids exceed 2**53."""
    if len(text) > MAX_DIGITS or not text.isascii() or "_" in text:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None
