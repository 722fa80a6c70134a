"""Section `notices` of policies.yaml: what may be written, and which addresses a webhook may reach."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cp_core.policy.notices import NoticePolicy, Sink, WebhookPolicy, require_web_address
from cp_core.policy.policies import Policies
from cp_resources.configuration import ConfigurationError, load_file

MAIL = {"host": "mail.example.com", "sender": "panel@example.com", "recipients": ["team@example.com"]}
HOOK = {"url": "https://hooks.example.com/tasks"}


def refused(section: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as raised:
        NoticePolicy.model_validate(section)
    return str(raised.value)


def test_without_a_section_notices_go_to_a_file() -> None:
    policy = NoticePolicy()
    assert (policy.sink, policy.file.path) == (Sink.FILE, "notices.jsonl")


def test_a_webhook_needs_exactly_one_address() -> None:
    needed = "one of webhook.url and webhook.url_env is needed"
    assert needed in refused({"sink": "webhook"})
    assert needed in refused({"sink": "webhook", "webhook": {**HOOK, "url_env": "HOOK_URL"}})
    for webhook in (HOOK, {"url_env": "HOOK_URL"}):
        assert NoticePolicy.model_validate({"sink": "webhook", "webhook": webhook}).sink is Sink.WEBHOOK


def test_mail_needs_a_server_a_sender_and_recipients() -> None:
    assert "email.host and email.sender and email.recipients are needed" in refused({"sink": "email"})
    assert "email.sender is needed" in refused({"sink": "email", "email": {**MAIL, "sender": None}})
    assert NoticePolicy.model_validate({"sink": "email", "email": MAIL}).email.recipients == (
        "team@example.com",
    )


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("implicit", 465), ("none", 25)])
def test_the_mail_port_follows_from_the_encryption(tls: str, port: int) -> None:
    policy = NoticePolicy.model_validate({"email": {**MAIL, "tls": tls}})
    assert policy.email.effective_port == port
    assert (
        NoticePolicy.model_validate({"email": {**MAIL, "tls": tls, "port": 2525}}).email.effective_port
        == 2525
    )


def test_certificates_are_verified_unless_a_person_says_otherwise() -> None:
    assert NoticePolicy().email.verify_certificate


def test_a_password_is_never_sent_where_it_could_be_read() -> None:
    login = {"username_env": "MAIL_USER", "password_env": "MAIL_PASSWORD"}
    assert "a login needs tls" in refused({"email": {**MAIL, **login, "tls": "none"}})
    assert "a login needs tls" in refused({"email": {**MAIL, **login, "verify_certificate": False}})
    assert "needed together" in refused({"email": {**MAIL, "username_env": "MAIL_USER"}})


@pytest.mark.parametrize(
    "address",
    ["team", "a b@example.com", "a@b@c", "a@example.com\nBcc: x@example.com", "a,b@example.com", "<a@b.c>"],
)
def test_what_is_no_mail_address_is_refused(address: str) -> None:
    assert "recipients" in refused({"email": {**MAIL, "recipients": [address]}})


@pytest.mark.parametrize("variable", ["", "MY SECRET", "s3cr3t-value!", "1ST", "a=b"])
def test_a_secret_is_named_by_a_variable_and_never_written(variable: str) -> None:
    assert "secret_env" in refused({"webhook": {"secret_env": variable}})


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example.com",
        "ftp://hooks.example.com",
        "https://",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\r\nX: y",
        "https://[::1",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be an address such as https://"):
        require_web_address(url)


def test_an_address_with_a_password_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text("notices:\n  webhook: {url: 'https://user:hunter2@hooks.example.com'}\n")
    with pytest.raises(ConfigurationError) as raised:
        load_file(file, Policies)
    assert f"{file}:2: notices.webhook.url: must hold no user name or password" in str(raised.value)
    assert "hunter2" not in str(raised.value)


# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry
INTERNAL = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_address_is_not_reached_unless_it_is_listed(address: str) -> None:
    assert not WebhookPolicy().may_reach(ip_address(address), encrypted=True)
    listed = WebhookPolicy(allowed_networks=(address,))
    assert listed.may_reach(ip_address(address), encrypted=True)
    assert listed.may_reach(ip_address(address), encrypted=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_a_public_address_is_reached_encrypted_only(address: str) -> None:
    assert WebhookPolicy().may_reach(ip_address(address), encrypted=True)
    assert not WebhookPolicy().may_reach(ip_address(address), encrypted=False)


@given(st.ip_addresses(v=4))
def test_an_address_is_no_more_reachable_in_the_clothes_of_another_family(address: Any) -> None:
    policy = WebhookPolicy()
    for disguised in (f"::ffff:{address}", f"64:ff9b::{address}"):
        if policy.may_reach(ip_address(disguised), encrypted=True):
            assert policy.may_reach(address, encrypted=True)


def test_a_listed_network_is_a_network() -> None:
    assert "allowed_networks" in refused({"webhook": {"allowed_networks": ["10.1.2.3/24"]}})  # host bits set
    assert "allowed_networks" in refused({"webhook": {"allowed_networks": ["intranet"]}})
    assert WebhookPolicy(allowed_networks=("10.1.2.0/24",)).may_reach(ip_address("10.1.2.9"), encrypted=False)
    assert not WebhookPolicy(allowed_networks=("10.1.2.0/24",)).may_reach(
        ip_address("10.1.3.9"), encrypted=True
    )
