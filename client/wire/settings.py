"""What a client is told, and what of it both kinds of client share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from affserve.client.wire.calls import RetryPolicy
from affserve.client.wire.endpoint import Endpoint, parse_endpoint
from affserve.client.wire.exchange import Exchange
from affserve.client.wire.transport import JPEG_QUALITY, Transport
from affserve.export.server.security import CallerTls
from affserve.train.errors import ServerError

DEFAULT_POLICY = RetryPolicy()


class ClientKeywords(TypedDict, total=False):
    """The keywords of both clients, as ClientSettings explains them."""

    transport: Transport | str
    tls: CallerTls | None
    timeout_s: float
    retry_for_s: float
    chunks_in_flight: int
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Where the service is, and how to talk to it."""

    transport: Transport | str = Transport.AUTO  # how frames travel: auto, raw, shm or jpeg
    tls: CallerTls | None = None  # None: plain text
    timeout_s: float = DEFAULT_POLICY.timeout_s  # of one attempt
    retry_for_s: float = DEFAULT_POLICY.retry_for_s  # how long a call is repeated that may succeed later
    chunks_in_flight: int = 2  # messages of `encode` that are under way at the same time
    jpeg_quality: int = JPEG_QUALITY  # 1 to 100, for transport jpeg
    policy: RetryPolicy = field(init=False)

    def __post_init__(self) -> None:
        known = [one.value for one in Transport]
        if self.transport not in known:
            raise ServerError(f"transport is {self.transport!r}; expected one of {', '.join(known)}")
        if self.chunks_in_flight < 1 or not 1 <= self.jpeg_quality <= 100:
            raise ServerError(
                f"chunks_in_flight is {self.chunks_in_flight}, jpeg_quality is {self.jpeg_quality}; expected at least "
                "1, and 1 to 100"
            )
        object.__setattr__(self, "policy", RetryPolicy(timeout_s=self.timeout_s, retry_for_s=self.retry_for_s))

    def keywords(self) -> dict[str, Any]:
        """Return the keywords that make another client like this one."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}


class ClientState:
    """What a client has before it connects, and tells about itself; the base of both."""

    def __init__(self, url: str, settings: ClientSettings) -> None:
        self.url = url
        self._endpoint: Endpoint = parse_endpoint(url, settings.tls)
        self._settings = settings
        self._exchange = Exchange(
            url,
            policy=settings.policy,
            transport=Transport(settings.transport),
            jpeg_quality=settings.jpeg_quality,
            is_one_server=self._endpoint.is_one_server,
        )

    @property
    def transport(self) -> str:
        """How frames travel now: raw, shm or jpeg; it may change when the link turns out to be slow."""
        return self._exchange.carrier.transport.value

    @property
    def _allowed_in_flight(self) -> int:
        return 1 if self._exchange.carrier.wants_quiet else self._settings.chunks_in_flight
