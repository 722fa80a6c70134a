"""Which network addresses may be called on an operator's behalf: public ones, and those the operator lists."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_NAT64 = IPv6Network("64:ff9b::/96")
Address = IPv4Address | IPv6Address


def may_be_called(address: str | Address, allowed: Iterable[str]) -> bool:
    """Whether a connection to `address` may be made.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged as that one, so
    that no spelling of 127.0.0.1 gets through.

    Args:
        allowed: addresses and networks that may be called although they are not public.

    Raises:
        ValueError: not an address, or not a network.
    """
    meant = _meant(ip_address(address) if isinstance(address, str) else address)
    if any(meant in ip_network(network) for network in allowed):
        return True
    return meant.is_global and not meant.is_multicast and not meant.is_reserved


def _meant(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    teredo = address.teredo
    embedded = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
    if embedded is None and address in _NAT64:
        embedded = IPv4Address(address.packed[-4:])
    return embedded or address
