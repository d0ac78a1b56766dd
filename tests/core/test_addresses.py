"""Which addresses are those of the open internet."""

import pytest

from gateway.core.addresses import check_allowed, is_allowed, is_public
from gateway.core.errors import InvalidRequest


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "100.64.0.1",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff0e::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "::127.0.0.1",
        "::ffff:0:a9fe:a9fe",
        "192.88.99.1",
        "no address",
        "",
    ],
)
def test_what_is_not_public(address: str) -> None:
    """This host, its neighbours, metadata services, and whatever leads there in disguise (A15)."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_what_is_public(address: str) -> None:
    """The rest."""
    assert is_public(address)


def test_settings_name_hosts_and_networks() -> None:
    """A host by its name, an address by a network that it lies in."""
    allowed = ("hooks.internal", "10.0.0.0/8", "fd00::/8", "192.168.7.7")
    assert is_allowed("HOOKS.internal", "127.0.0.1", allowed)
    assert is_allowed("x", "10.9.8.7", allowed)
    assert is_allowed("x", "::ffff:10.9.8.7", allowed)
    assert is_allowed("x", "fd00::9", allowed)
    assert is_allowed("x", "192.168.7.7", allowed)
    assert not is_allowed("evil-hooks.internal", "127.0.0.1", allowed)
    assert not is_allowed("x", "192.168.7.8", allowed)


def test_a_slip_in_the_setting_is_refused() -> None:
    """What is neither host nor network is found at the start."""
    check_allowed("s", ("a-b.c", "10.0.0.0/8", "::1"))
    for wrong in ("10.0.0.0/99", "http://a", "a b", ""):
        with pytest.raises(InvalidRequest):
            check_allowed("s", (wrong,))
