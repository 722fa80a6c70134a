"""Who is told about assignments and completions, and how patiently: section `notices` of policies.yaml.

A secret is never a value here: a key that ends in `_env` holds the name of the environment variable that does.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
MailAddress = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+$", max_length=254)
]

_NAT64 = IPv6Network("64:ff9b::/96")


class Sink(StrEnum):
    """Where notices go."""

    FILE = "file"
    WEBHOOK = "webhook"
    EMAIL = "email"


class MailTls(StrEnum):
    """How the connection to the mail server is encrypted."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    NONE = "none"


_MAIL_PORTS = {MailTls.STARTTLS: 587, MailTls.IMPLICIT: 465, MailTls.NONE: 25}


def require_web_address(url: str) -> str:
    """Return `url` when a notice can be posted to it.

    Raises:
        ValueError: it is no http(s) address, or holds a user name or password. The text never shows it.
    """
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an address such as https://hooks.example.com/tasks")
    if "@" in parts.netloc:
        raise ValueError("must hold no user name or password: sign with secret_env, or use url_env")
    return url


def _web_address(url: str) -> str:
    try:
        return require_web_address(url)
    except ValueError as error:  # of the type whose value is not shown: it may hold a password
        raise PydanticCustomError("secret", "{problem}", {"problem": str(error)}) from None


def _canonical_network(network: str) -> str:
    return str(ip_network(network))


class FilePolicy(BaseModel):
    """Keys of `notices.file`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        default="notices.jsonl", min_length=1, description="JSON lines; relative to CP_HOME unless absolute."
    )


class WebhookPolicy(BaseModel):
    """Keys of `notices.webhook`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, AfterValidator(_web_address)] | None = Field(
        default=None, description="Where each notice is posted. An address that is itself a secret: url_env."
    )
    url_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable that holds the address, instead of url."
    )
    secret_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable of the signing secret. Without it nothing is signed."
    )
    allowed_networks: tuple[Annotated[str, AfterValidator(_canonical_network)], ...] = Field(
        default=(),
        description="Networks such as 10.1.2.0/24 that may be reached although they are not public; plain "
        "http:// is for these only.",
    )
    concurrency: int = Field(default=8, ge=1, le=64, description="Most posts under way at a time.")
    response_limit_bytes: int = Field(
        default=65_536, ge=0, le=1_048_576, description="Most that is read of an answer."
    )

    def may_reach(self, address: IPv4Address | IPv6Address, *, encrypted: bool) -> bool:
        """Whether a notice may be sent to this address: public and encrypted, or listed."""
        if any(address in ip_network(network) for network in self.allowed_networks):
            return True
        return encrypted and _is_public(address)


class EmailPolicy(BaseModel):
    """Keys of `notices.email`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9.:_-]+$", max_length=253, description="The mail (SMTP) server."
    )
    port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Default: 587 with starttls, 465 with implicit, 25 with none.",
    )
    tls: MailTls = Field(default=MailTls.STARTTLS, description="starttls, implicit, or none.")
    verify_certificate: bool = Field(default=True, description="Whether the server must prove who it is.")
    username_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable of the user name; without it no login is made."
    )
    password_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable of the password."
    )
    sender: MailAddress | None = Field(default=None, description="The address that notices come from.")
    recipients: tuple[MailAddress, ...] = Field(
        default=(), max_length=50, description="The addresses that each notice goes to."
    )

    @property
    def effective_port(self) -> int:
        """The port that is connected to."""
        return self.port or _MAIL_PORTS[self.tls]

    @model_validator(mode="after")
    def _login_is_whole_and_encrypted(self) -> Self:
        if (self.username_env is None) != (self.password_env is None):
            raise ValueError("username_env and password_env are needed together, or neither")
        if self.username_env is not None and (self.tls is MailTls.NONE or not self.verify_certificate):
            raise ValueError(
                "a login needs tls: starttls or implicit, and verify_certificate: true, or the password could "
                "be read on its way"
            )
        return self


class NoticePolicy(BaseModel):
    """Where notices go, and how patiently they are delivered."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sink: Sink = Field(default=Sink.FILE, description="file, webhook or email.")
    file: FilePolicy = FilePolicy()
    webhook: WebhookPolicy = WebhookPolicy()
    email: EmailPolicy = EmailPolicy()

    timeout_seconds: float = Field(
        default=10, gt=0, le=60, description="For one post, or for one exchange with the mail server."
    )
    batch_seconds: float = Field(
        default=30,
        gt=0,
        le=600,
        description="A batch begins no further notice after this; its transaction is open for so long.",
    )
    max_tries: int = Field(
        default=10, ge=1, le=100, description="After so many failed tries a notice waits for a person."
    )
    backoff_base_seconds: float = Field(default=5, ge=0, description="Ceiling of the first retry's delay.")
    backoff_cap_seconds: float = Field(
        default=3600, ge=0, le=86_400, description="Ceiling of any retry's delay."
    )

    @model_validator(mode="after")
    def _sink_has_what_it_needs(self) -> Self:
        if self.sink is Sink.WEBHOOK and (self.webhook.url is None) == (self.webhook.url_env is None):
            raise ValueError("sink is webhook, so one of webhook.url and webhook.url_env is needed")
        if self.sink is Sink.EMAIL:
            missing = [key for key in ("host", "sender", "recipients") if not getattr(self.email, key)]
            if missing:
                needed = " and ".join(f"email.{key}" for key in missing)
                raise ValueError(f"sink is email, so {needed} {'is' if len(missing) == 1 else 'are'} needed")
        return self


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = IPv4Address(address.packed[-4:])
        if embedded is not None:
            return _is_public(embedded)
    return address.is_global and not address.is_multicast
