"""One HTTP GET at a time: redirects only to the web, failures sorted into "try again" and "no use".

A token goes to the server that it is meant for and to no other, whatever that server redirects to.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from xares_store import __version__

TIMEOUT_S = 30.0  # without a single byte
BACKOFF_S = 0.5  # doubled after every attempt that brought nothing
MAX_WAIT_S = 60.0
MAX_RETRY_AFTER_S = 900.0  # a server that wants a longer pause is not waited for
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_MAX_DETAIL = 300
_USED_UP = re.compile(r'"[^"]*"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})')  # RateLimit: "api";r=0;t=55


class RetryError(Exception):
    """An attempt failed in a way that another one may not.

    Attributes:
        after_s: pause that the server asked for.
        connected: whether a server answered at all.
    """

    def __init__(self, message: str, *, after_s: float | None = None, connected: bool = True) -> None:
        self.after_s = after_s
        self.connected = connected
        super().__init__(message)


class RefusedError(Exception):
    """Another attempt would not help.

    Attributes:
        status: what the server answered, if it did.
        code: its word for the reason (``X-Error-Code``), empty without one.
        detail: its sentence about the reason (``X-Error-Message``), empty without one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str = "", detail: str = "") -> None:
        self.status, self.code, self.detail = status, code, detail
        super().__init__(message)


class CancelledError(Exception):
    """The download was interrupted."""


class Web:
    """Opens URLs for several threads, which pause together when the server asks for a pause.

    Args:
        cancel: set to make every wait and every read end at once with :class:`CancelledError`.
    """

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self.cancel = cancel or threading.Event()
        self._lock = threading.Lock()
        self._not_before: dict[str, float] = {}  # host -> time.monotonic() of the next request
        self._tokens: dict[tuple[str, str], str] = {}  # origin -> token
        # Only these handlers: the usual opener would follow file:, ftp: and data: addresses too. Without its error
        # processor every status comes back as a response.
        self._opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self._opener.add_handler(handler())

    def authorize(self, url: str, token: str) -> None:
        """Send a token with every request to the origin (scheme, host and port) of ``url``, and to no other."""
        self._tokens[origin(url)] = token

    def check(self) -> None:
        """Raise :class:`CancelledError` when the download was interrupted."""
        if self.cancel.is_set():
            raise CancelledError

    def sleep(self, seconds: float) -> None:
        """Wait, unless interrupted."""
        if self.cancel.wait(max(0.0, seconds)):
            raise CancelledError

    def back_off(self, attempt: int, after_s: float | None) -> None:
        """Wait before attempt ``attempt`` (the first repetition is 0), as long as the server asked for at least."""
        self.sleep(max(min(BACKOFF_S * 2.0 ** min(attempt, 16), MAX_WAIT_S), after_s or 0.0))

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """Open a URL; the response has status 200, 206 or 416.

        Raises:
            RetryError: the connection failed or was cut, or the server is busy.
            RefusedError: no such file, no permission, or an address that is not followed.
        """
        response = self._follow(url, headers)
        try:
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise RetryError(f"the connection was cut ({_reason(error)})") from error
        finally:
            with suppress(OSError, http.client.HTTPException):
                response.close()

    def _follow(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        first, away = origin(url), False
        for _ in range(MAX_REDIRECTS + 1):
            # Once another server has chosen the address, coming back does not bring the token back.
            away = away or origin(url) != first
            token = None if away else self._tokens.get(first)
            response = self._open(url, headers if token is None else {**headers, "Authorization": f"Bearer {token}"})
            status = response.status
            if status in (200, 206, 416):
                return response
            response.close()
            if status in _REDIRECTS:
                url = redirect(url, response.headers.get("Location"))
                continue
            after_s = retry_after(response.headers.get("Retry-After"))
            if after_s is None and status == 429:
                after_s = rate_limit(response.headers.get("RateLimit"))
            message = f"the server answered {status} {response.reason}".rstrip()
            if status not in _TRANSIENT and not (away and status == 403):  # a signed address that has expired gives 403
                code, detail = (_printable(response.headers.get(f"X-Error-{name}")) for name in ("Code", "Message"))
                raise RefusedError(
                    message + (f" ({detail})" if detail else ""), status=status, code=code, detail=detail
                )
            if after_s is not None:
                self._pause(url, after_s, message)
            raise RetryError(message, after_s=after_s)
        raise RefusedError(f"more than {MAX_REDIRECTS} redirects, the last one to {without_query(url)}")

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        check_url(url)
        self.sleep(self._not_before.get(urlsplit(url).netloc, 0.0) - time.monotonic())
        all_headers = {"User-Agent": f"xares-store/{__version__}", "Accept-Encoding": "identity", **headers}
        request = urllib.request.Request(url, headers=all_headers)  # noqa: S310 - check_url let http and https through
        try:
            response: Any = self._opener.open(request, timeout=TIMEOUT_S)
        except ssl.SSLCertVerificationError as error:
            raise _untrusted(url, error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise _untrusted(url, cause) from error
            if isinstance(error, ValueError) and not isinstance(error, OSError | http.client.HTTPException):
                raise RefusedError(f"the address {url!r} cannot be opened ({error})") from error
            connected = isinstance(cause, http.client.HTTPException | ConnectionResetError | BrokenPipeError)
            raise RetryError(
                f"no answer from {urlsplit(url).netloc} ({_reason(cause)})", connected=connected
            ) from error
        assert isinstance(response, http.client.HTTPResponse)
        return response

    def _pause(self, url: str, after_s: float, message: str) -> None:
        if after_s > MAX_RETRY_AFTER_S:
            raise RefusedError(f"{message} and asks to come back in {after_s / 60:.0f} minutes")
        host = urlsplit(url).netloc
        with self._lock:
            self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + after_s)


def check_url(url: str) -> None:
    """Let only web addresses through.

    Raises:
        RefusedError: the scheme is not http or https, there is no host, or the address holds a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or any(letter <= " " or letter == "\x7f" for letter in url):
        raise RefusedError(f"wanted an address that begins with http:// or https://, found {url!r}")


def origin(url: str) -> tuple[str, str]:
    """Return scheme and host of an address, in small letters and with the port.

    Example:
        >>> origin("https://Example.org/a?b"), origin("http://localhost:8000/")
        (('https', 'example.org:443'), ('http', 'localhost:8000'))
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, f"{parts.hostname or ''}:{port or (443 if parts.scheme == 'https' else 80)}"


def without_query(url: str) -> str:
    """Return an address without what follows the question mark: signed addresses are secrets for a while."""
    return url.partition("?")[0]


def redirect(url: str, location: str | None) -> str:
    """Return where a redirect leads.

    Raises:
        RefusedError: nowhere, not to the web, or from an encrypted connection to an open one.

    Example:
        >>> redirect("https://zenodo.org/a/b", "../c")
        'https://zenodo.org/c'
    """
    target = urljoin(url, location or "")
    if not location:
        raise RefusedError(f"{url} redirects to nowhere")
    check_url(target)
    if url.startswith("https:") and not target.startswith("https:"):
        raise RefusedError(f"{url} redirects to {without_query(target)}, which is not encrypted")
    return target


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date.

    Example:
        >>> retry_after("120"), retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), retry_after("soon")
        (120.0, 0.0, None)
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def rate_limit(value: str | None) -> float | None:
    """Return the seconds until requests are allowed again, from a RateLimit header that says that none are left.

    Example:
        >>> rate_limit('"resolvers";r=0;t=55'), rate_limit('"resolvers";r=10;t=55'), rate_limit(None)
        (56.0, None, None)
    """
    found = _USED_UP.search(value or "")
    return float(found[1]) + 1.0 if found else None  # the server rounds down


def _printable(text: str | None) -> str:
    return "".join(letter for letter in text or "" if letter.isprintable())[:_MAX_DETAIL].strip()


def _untrusted(url: str, error: Exception) -> RefusedError:
    return RefusedError(f"the certificate of {urlsplit(url).netloc} cannot be trusted ({_reason(error)})")


def _reason(error: object) -> str:
    text = str(error).strip()
    return text or type(error).__name__
