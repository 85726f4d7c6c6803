"""Who may read a data set on the Hugging Face hub: the token, and what a refusal means."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from xares_store.errors import ConfigError
from xares_store.fetch.http import RefusedError, Web

_LOG_IN = "log in (`hf auth login`) or set HF_TOKEN to a token that may read it"
_TRUE = ("1", "ON", "YES", "TRUE")
_OWN_MACHINE = ("localhost", "127.0.0.1", "::1")


def hub_is_off() -> bool:
    """Tell whether ``HF_HUB_OFFLINE`` forbids connections to the hub, as it does for its own library."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def authorize(web: Web, endpoint: str) -> None:
    """Let requests to the hub carry the user's token, if there is one.

    The token is that of the hub's library: ``HF_TOKEN``, or what ``hf auth login`` stored. It is never sent over an
    open connection to another machine.

    Raises:
        ConfigError: there is a token that cannot be read or sent.
    """
    parts = urlsplit(endpoint)
    if parts.scheme == "https" or parts.hostname in _OWN_MACHINE:
        token = _token()
        if token is not None:
            web.authorize(endpoint, token)


def _token() -> str | None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        token = get_token()
    except Exception as error:  # a file that cannot be read, a login service that does not answer
        raise ConfigError(
            f"The token of the Hugging Face hub cannot be read: {error}.",
            where="HF_TOKEN, or the file that `hf auth login` wrote",
            hint="Log in again, or remove it: public data sets need no token.",
        ) from error
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            "The token of the Hugging Face hub holds characters that no token has.",
            where="HF_TOKEN, or the file that `hf auth login` wrote",
            hint="Copy it again from https://huggingface.co/settings/tokens.",
        )
    return token


def refusal(error: RefusedError, page: str) -> tuple[str, str]:
    """Say what a refusal of the hub means.

    Args:
        error: the refusal.
        page: web page of the data set.

    Returns:
        What is the case, without a full stop, and what to do next.
    """
    if error.code == "GatedRepo":
        return (
            "The data set is gated: its terms have to be accepted first",
            f"Open {page}, accept the terms with your account, and {_LOG_IN}.",
        )
    if error.code == "RevisionNotFound":
        return "The data set has no such revision", "Check what follows the @ of data.hf: a branch, a tag or a commit."
    if error.code == "EntryNotFound":
        return (
            "The data set has no such file or folder",
            "Check data.hf_folder and the shard patterns in the task file.",
        )
    if error.status == 401 and "invalid" in error.detail.lower():
        return (
            "The token was refused",
            "It is wrong or has expired: log in again (`hf auth login`) or renew HF_TOKEN. Public data sets need none.",
        )
    if error.code == "RepoNotFound" or error.status in (401, 404):
        return (
            "There is no such data set, or it is private",
            f"Check the key data.hf in the task file against {page}. For a private data set {_LOG_IN}.",
        )
    if error.status == 403:
        return "The data set may not be read", f"Look at {page}; {_LOG_IN}."
    return "The hub refused to answer", f"Look at {page}, and check HF_ENDPOINT or --hf-mirror where one is used."
