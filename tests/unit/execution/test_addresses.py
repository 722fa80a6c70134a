"""Which addresses may be called: public ones, and those that are listed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.addresses import may_be_called


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111"])
def test_a_public_address_may_be_called(address: str) -> None:
    assert may_be_called(address, ())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # cloud metadata
        "100.64.0.1",  # carrier-grade NAT
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",  # 127.0.0.1 by 6to4
        "64:ff9b::a9fe:a9fe",  # 169.254.169.254 by NAT64
    ],
)
def test_an_address_that_is_not_public_may_not_be_called_however_it_is_spelt(address: str) -> None:
    assert not may_be_called(address, ())


def test_an_address_that_is_listed_may_be_called_and_its_neighbour_may_not() -> None:
    assert may_be_called("10.1.2.3", ("192.168.0.0/16", "10.1.2.0/24"))
    assert may_be_called("::ffff:10.1.2.3", ("10.1.2.0/24",))
    assert may_be_called("::1", ("::1",))
    assert not may_be_called("10.1.3.3", ("10.1.2.0/24",))


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_no_private_or_loopback_address_gets_through_as_a_mapped_one(address: object) -> None:
    assert not may_be_called(f"::ffff:{address}", ())
