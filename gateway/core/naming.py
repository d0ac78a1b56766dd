"""Naming units: who is randomised, as far as a request says it."""

from collections.abc import Mapping
from typing import Final, Protocol

from gateway.core.endpoints import UnitKey
from gateway.core.errors import InvalidRequest
from gateway.core.targeting import Scalar
from gateway.core.tensors import Tensors

MAX_UNIT_BYTES: Final = 1024


class Facts(Protocol):
    """What a request says of itself, as far as rules may read it."""

    @property
    def parameters(self) -> Mapping[str, Scalar]:
        """Request-level parameters."""

    @property
    def tensors(self) -> Tensors:
        """Input tensors by name."""

    def header(self, name: str) -> str | None:
        """The first header of that lower-case name, decoded as Latin-1; None if absent."""

    def raw_header(self, name: bytes) -> bytes | None:
        """The same, as it came."""


def unit_of(key: UnitKey, facts: Facts) -> bytes | None:
    """A unit that is no header; None when the request names none, or more than one."""
    if key.parameter is not None:
        value = facts.parameters.get(key.parameter)
        return None if value is None else str(value).encode()
    return _unit_of_input(facts.tensors, key.input or "")


def checked_unit(unit: bytes) -> bytes | None:
    """A unit as it came, None for a blank one."""
    if not unit.strip():
        return None
    if len(unit) > MAX_UNIT_BYTES:
        message = f"The unit holds {len(unit)} bytes; at most {MAX_UNIT_BYTES} are allowed."
        raise InvalidRequest(message)
    return unit


def _unit_of_input(tensors: Tensors, name: str) -> bytes | None:
    tensor = tensors.get(name)
    if tensor is None or tensor.size == 0:
        return None
    flat = tensor.ravel()
    if not bool((flat[1:] == flat[:-1]).all()):
        return None
    first = flat[0]
    return first if isinstance(first, bytes) else str(first).encode()
