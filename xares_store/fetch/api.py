"""Ask a server for JSON: what Zenodo and the Hugging Face hub have in common."""

from __future__ import annotations

import json
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from xares_store.errors import ConfigError, ShardError
from xares_store.fetch.http import RefusedError, RetryError, Web, check_url

ATTEMPTS = 4
_MAX_BYTES = 32 << 20


class UnreachableError(ShardError):
    """No server answered.

    Args:
        what: the answer that was wanted, with a capital letter.
        cause: what happened; it holds for everything else that this server would be asked for.
        where: the address.
        hint: what to do next.
    """

    def __init__(self, what: str, cause: str, *, where: str, hint: str) -> None:
        self.cause, self.server = cause, urlsplit(where).netloc
        super().__init__(f"{what} did not arrive: {cause}.", where=where, hint=hint)


class OddError(Exception):
    """The answer is not what the server's API documents; the message says what was found instead."""


def base_url(mirror: str | None, original: str, option: str) -> str:
    """Return the address that stands for a server.

    Args:
        mirror: address that a user gave, if any.
        original: the server's own address.
        option: how the user gave the mirror, for messages.

    Raises:
        ConfigError: it is not a web address.

    Example:
        >>> base_url(None, "https://zenodo.org", "--mirror")
        'https://zenodo.org'
        >>> base_url("http://localhost:8000/zenodo/", "https://zenodo.org", "--mirror")
        'http://localhost:8000/zenodo'
    """
    base = (mirror or original).rstrip("/")
    try:
        check_url(base)
    except RefusedError as error:
        raise ConfigError(
            f"The mirror cannot be used: {error}.", where=option, hint=f"For example {option} {original}."
        ) from None
    if urlsplit(base).query or urlsplit(base).fragment:
        raise ConfigError(f"The mirror's address ends in a query: {base}.", where=option, hint="Leave it out.")
    return base


def get_json(web: Web, url: str, what: str, *, option: str) -> tuple[Any, Message]:
    """Ask for JSON, a few times when the server is busy or the connection is cut.

    Args:
        web: opens the connection.
        url: what to ask.
        what: name of the answer, for messages.
        option: the option with which a mirror is named.

    Returns:
        The value, and the headers of the answer.

    Raises:
        UnreachableError: no server answered.
        ShardError: none of the attempts brought a whole answer.
        RefusedError: the server refuses to answer.
        OddError: the answer is too long or no JSON.
    """
    for attempt in range(ATTEMPTS):
        try:
            with web.get(url, {"Accept": "application/json"}) as response:
                text = response.read(_MAX_BYTES + 1)
                if response.length and len(text) <= _MAX_BYTES:
                    raise RetryError("the connection was cut")
                headers = response.headers
            break
        except RetryError as error:
            if attempt == ATTEMPTS - 1:
                hint = f"Try again later, or name a mirror with {option} URL."
                if not error.connected:
                    raise UnreachableError(what, f"{error}, asked {ATTEMPTS} times", where=url, hint=hint) from error
                raise ShardError(
                    f"{what} did not arrive after {ATTEMPTS} attempts: {error}.", where=url, hint=hint
                ) from error
            web.back_off(attempt, error.after_s)
    if len(text) > _MAX_BYTES:
        raise OddError("more than 32 MiB")
    try:
        return json.loads(text), headers
    except (ValueError, RecursionError):
        raise OddError("something that is not JSON") from None
