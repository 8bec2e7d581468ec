"""Endpoint keys: `ip:port`, IPv6 in brackets, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Endpoint, InvalidAddress, endpoint_key, split_key


@given(address=st.ip_addresses(), port=st.integers(1, 65535))
def test_keys_come_back(address: object, port: int) -> None:
    key = endpoint_key(str(address), port)
    assert split_key(key) == (str(address), port)
    assert Endpoint(namespace="n", pod_name="p", address=str(address), port=port).key == key


def test_ipv6_has_brackets() -> None:
    assert endpoint_key("fd00::1", 8000) == "[fd00::1]:8000"


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "pod:80", "::1:80", "[10.0.0.1]:80", "1.2.3.4:٣"],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddress):
        split_key(text)


@given(st.text(max_size=30))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        address, port = split_key(text)
    except InvalidAddress:
        return
    assert split_key(endpoint_key(address, port)) == (address, port)
