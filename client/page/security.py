"""Who may ask: a browser on this machine that was given the token, on a page of ours; nobody else.

A page elsewhere on the web could make a browser send requests here, or give its own name this address (DNS rebinding).
So every request must name a loopback host, carry the token in a cookie that other sites cannot send, and come from us.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
READING = frozenset({"GET", "HEAD"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
CLOSED = 1008  # of a websocket: a policy was violated


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Guard:
    """Lets a request through to the app behind it, or says why not."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token
        # Cookies know no ports: two pages on one machine must not take each other's.
        self._cookie = "affserve-" + hashlib.sha256(token.encode()).hexdigest()[:8]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        answer = self._refusal(scope)
        if answer is None:
            return await self._app(scope, receive, _with_headers(send))
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": CLOSED, "reason": "not allowed"})
        return await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return what is answered in place of the app, or None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(f"http://{host}") not in LOOPBACK_NAMES:
            return _refused("this page answers to 127.0.0.1 and localhost only")
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[-1]
        if scope["type"] == "http" and scope["path"] == "/" and self._is_token(given):
            return self._welcome()
        if not _from_here(scope, headers, host):
            return _refused("this request comes from another page")
        if not self._is_token(self._in_cookie(headers)):
            return _refused("open the address with its token, as affserve view printed it")
        return None

    def _welcome(self) -> Response:
        """Take the token out of the address, where people would copy it from, and into a cookie."""
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return answer

    def _in_cookie(self, headers: Headers) -> str:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return morsel.value if morsel is not None else ""

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _from_here(scope: Scope, headers: Headers, host: str) -> bool:
    """Say whether a page of ours asks: what changes something must say so, the rest must not say otherwise."""
    origin = headers.get("origin")
    if origin is not None:
        return origin == f"http://{host}"
    reads = scope["type"] == "http" and scope["method"] in READING
    return reads and headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _refused(why: str) -> Response:
    return PlainTextResponse(f"not allowed: {why}\n", status_code=403)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
