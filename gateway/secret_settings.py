"""Settings that hold secrets: printed, logged or shown in a traceback, they keep them."""

from typing import ClassVar

from msgspec import Struct

MASK = "***"


class Masked(Struct, frozen=True):
    """A group of settings some of whose fields are secrets."""

    hidden: ClassVar[frozenset[str]] = frozenset()
    """The fields that are not shown."""

    def __repr__(self) -> str:
        """The fields with their values, but for the secrets that are set."""
        told = (
            f"{name}={MASK if name in self.hidden and value is not None else repr(value)}"
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        )
        return f"{type(self).__name__}({', '.join(told)})"
