"""Addresses that a caller's URL may lead to: public ones, and what the settings name besides.

Whoever may write a webhook could otherwise make the control process speak to this host, to its
neighbours, or to the service that hands a cloud machine its credentials.
"""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, TypeAlias

from gateway.core.errors import InvalidRequest, excerpt

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_NAT64: Final = ip_network("64:ff9b::/96")
_ASSIGNED: Final = ip_network("2000::/3")
"""All of IPv6 that is given out; what lies beyond is reserved, or carries an address of IPv4."""
_NEVER: Final = tuple(
    map(
        ip_network,
        (
            "192.88.99.0/24",  # once led to relays between the two internets
            "168.63.129.16/32",  # of Azure: answers every machine there, though it is public
            "192.0.0.0/24",  # of protocols; Oracle's machines ask at 192.0.0.192
            "64:ff9b:1::/48",  # translates to whatever is local
            "3fff::/20",  # for examples
        ),
    )
)


def is_public(text: str) -> bool:
    """Whether an address is one of the open internet, whatever it is wrapped in."""
    address = _read(text)
    if address is None:
        return False
    if isinstance(address, IPv6Address) and not (address in _ASSIGNED or address in _NAT64):
        return False
    return all(
        one.is_global and not one.is_multicast and not any(one in net for net in _NEVER)
        for one in (address, *_inner(address))
    )


def is_allowed(host: str, address: str, allowed: Sequence[str]) -> bool:
    """Whether the settings name a host, or a network that an address of it lies in."""
    if host.lower() in {one.lower() for one in allowed}:
        return True
    found = _read(address)
    return found is not None and any(found in net for net in map(_network, allowed) if net)


def check_allowed(setting: str, allowed: Sequence[str]) -> None:
    """Refuse, with InvalidRequest, what is neither a host, an address nor a network."""
    for one in allowed:
        plain = one.isascii() and one.replace("-", "").replace(".", "").isalnum()
        if not plain and _network(one) is None:
            message = f"Setting {setting}: '{excerpt(one)}' is no host and no network."
            raise InvalidRequest(message)


def _read(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _inner(address: Address) -> list[Address]:
    """Addresses that another one carries, to which it would be translated."""
    if not isinstance(address, IPv6Address):
        return []
    found: list[Address] = [one for one in (address.sixtofour,) if one is not None]
    if address.teredo is not None:
        found += address.teredo
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return found


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
