"""What a Zenodo record holds: its files with their sizes and MD5, from the REST API."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urljoin

from xares_store.errors import ShardError
from xares_store.fetch.api import OddError, base_url, get_json
from xares_store.fetch.http import RefusedError, Web, check_url
from xares_store.fetch.remote import RemoteFile, is_checksum

ZENODO = "https://zenodo.org"
OPTION = "--mirror"
_REASONS = {404: "There is no such record", 410: "The record was withdrawn", 403: "The record is not public"}


def zenodo_url(mirror: str | None) -> str:
    """Return the address that stands for https://zenodo.org.

    Raises:
        ConfigError: it is not a web address.
    """
    return base_url(mirror, ZENODO, OPTION)


def list_record(web: Web, record: str, *, mirror: str | None = None) -> list[RemoteFile]:
    """Ask for the files of a record.

    Raises:
        UnreachableError: no server answered.
        ShardError: there is no such record, it is not public, or the answer is not what Zenodo's API documents.
        ConfigError: the mirror's address cannot be used.
    """
    base = zenodo_url(mirror)
    url = f"{base}/api/records/{record}"
    try:
        answer, _ = get_json(web, url, f"The list of files of Zenodo record {record}", option=OPTION)
        return _files(answer, url, base)
    except RefusedError as error:
        raise ShardError(
            f"{_REASONS.get(error.status or 0, 'The list of files did not arrive')}: {error}.",
            where=url,
            hint="Check the key data.zenodo in the task file, and --mirror where one is used.",
        ) from error
    except OddError as error:
        raise ShardError(
            f"Wanted the description of a Zenodo record, found {error}.",
            where=url,
            hint="Check --mirror and XARES_ZENODO; without them the record is read from https://zenodo.org.",
        ) from None


def _files(record: Any, url: str, base: str) -> list[RemoteFile]:
    listed = record.get("files") if isinstance(record, dict) else None
    if not isinstance(listed, list):
        raise OddError('JSON without a list "files"')
    found: dict[str, RemoteFile] = {}
    for entry in listed:
        file = _file(entry, url, base)
        if found.setdefault(file.name, file) != file:
            raise OddError(f"two files called {file.name!r}")
    return list(found.values())


def _file(entry: Any, url: str, base: str) -> RemoteFile:
    entry = entry if isinstance(entry, dict) else {}
    name, size, checksum = entry.get("key"), entry.get("size"), entry.get("checksum")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise OddError(f"a file whose key is {name!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise OddError(f"the size {size!r} for {name}")
    md5 = checksum.lower() if isinstance(checksum, str) else ""
    if not md5.startswith("md5:") or not is_checksum(md5):
        raise OddError(f"the checksum {checksum!r} for {name}, where md5:<32 digits> is wanted")
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
        raise OddError(f"a link that is not followed for {name}: {error}") from None
    return RemoteFile(name, size, md5, target)
