"""What a Zenodo record holds: its files with their sizes and MD5, from the REST API."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from xares_store.errors import ConfigError, ShardError
from xares_store.fetch.http import RefusedError, RetryError, Web, check_url

ZENODO = "https://zenodo.org"
ATTEMPTS = 4
_MAX_RECORD_BYTES = 32 << 20
_MD5 = re.compile(r"md5:([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a record.

    Attributes:
        name: name in the record; not checked to be a safe path.
        size: bytes.
        md5: 32 hexadecimal digits.
        url: where its bytes are.
    """

    name: str
    size: int
    md5: str
    url: str


class UnreachableError(ShardError):
    """No server answered."""


def base_url(mirror: str | None) -> str:
    """Return the address that stands for https://zenodo.org.

    Raises:
        ConfigError: it is not a web address.

    Example:
        >>> base_url(None), base_url("http://localhost:8000/zenodo/")
        ('https://zenodo.org', 'http://localhost:8000/zenodo')
    """
    base = (mirror or ZENODO).rstrip("/")
    try:
        check_url(base)
    except RefusedError as error:
        raise ConfigError(
            f"The mirror cannot be used: {error}.", where="--mirror", hint="For example --mirror https://zenodo.org."
        ) from None
    if urlsplit(base).query or urlsplit(base).fragment:
        raise ConfigError(f"The mirror's address ends in a query: {base}.", where="--mirror", hint="Leave it out.")
    return base


def list_record(web: Web, record: str, *, mirror: str | None = None) -> list[RemoteFile]:
    """Ask for the files of a record.

    Raises:
        UnreachableError: no server answered.
        ShardError: there is no such record, it is not public, or the answer is not what Zenodo's API documents.
        ConfigError: the mirror's address cannot be used.
    """
    base = base_url(mirror)
    url = f"{base}/api/records/{record}"
    for attempt in range(ATTEMPTS):
        try:
            with web.get(url, {"Accept": "application/json"}) as response:
                text = response.read(_MAX_RECORD_BYTES + 1)
                if response.length and len(text) <= _MAX_RECORD_BYTES:
                    raise RetryError("the connection was cut")
            return _files(text, url, base)
        except RetryError as error:
            if attempt == ATTEMPTS - 1:
                kind = ShardError if error.connected else UnreachableError
                raise kind(
                    f"The list of files of Zenodo record {record} did not arrive after {ATTEMPTS} attempts: {error}.",
                    where=url,
                    hint="Try again later, or name a mirror with --mirror URL.",
                ) from error
            web.back_off(attempt, error.after_s)
        except RefusedError as error:
            reasons = {404: "There is no such record", 410: "The record was withdrawn", 403: "The record is not public"}
            raise ShardError(
                f"{reasons.get(error.status or 0, 'The list of files did not arrive')}: {error}.",
                where=url,
                hint="Check the key data.zenodo in the task file, and --mirror where one is used.",
            ) from error
    raise AssertionError("unreachable")


def _files(text: bytes, url: str, base: str) -> list[RemoteFile]:
    if len(text) > _MAX_RECORD_BYTES:
        raise _odd("more than 32 MiB", url)
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _odd("something that is not JSON", url) from None
    listed = record.get("files") if isinstance(record, dict) else None
    if not isinstance(listed, list):
        raise _odd('JSON without a list "files"', url)
    found: dict[str, RemoteFile] = {}
    for entry in listed:
        file = _file(entry, url, base)
        if found.setdefault(file.name, file) != file:
            raise _odd(f"two files called {file.name!r}", url)
    return list(found.values())


def _file(entry: Any, url: str, base: str) -> RemoteFile:
    entry = entry if isinstance(entry, dict) else {}
    name, size, checksum = entry.get("key"), entry.get("size"), entry.get("checksum")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _odd(f"a file whose key is {name!r}", url)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _odd(f"the size {size!r} for {name}", url)
    md5 = _MD5.fullmatch(checksum.lower()) if isinstance(checksum, str) else None
    if md5 is None:
        raise _odd(f"the checksum {checksum!r} for {name}, where md5:<32 digits> is wanted", url)
    links = entry.get("links")
    links = links if isinstance(links, dict) else {}
    link = links.get("content") or links.get("self") or f"{url}/files/{quote(name, safe='')}/content"
    target = urljoin(url + "/", str(link))
    for original in (ZENODO, ZENODO.replace("https:", "http:")):  # a mirror may pass the record on as it is
        if target.startswith(original + "/"):
            target = base + target[len(original) :]
    try:
        check_url(target)
    except RefusedError as error:
        raise _odd(f"a link that is not followed for {name}: {error}", url) from None
    return RemoteFile(name, size, md5[1], target)


def _odd(found: str, url: str) -> ShardError:
    return ShardError(
        f"Wanted the description of a Zenodo record, found {found}.",
        where=url,
        hint="Check --mirror and XARES_ZENODO; without them the record is read from https://zenodo.org.",
    )
