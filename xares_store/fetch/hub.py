"""What a data set on the Hugging Face hub holds: its files with sizes and hashes at one commit, from the hub's API."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import quote, urljoin

from xares_store.errors import ShardError
from xares_store.fetch.access import refusal
from xares_store.fetch.api import OddError, base_url, get_json
from xares_store.fetch.http import RefusedError, Web, check_url, origin
from xares_store.fetch.remote import RemoteFile, is_checksum

HUB = "https://huggingface.co"
OPTION = "--hf-mirror"
ENDPOINT_ENV = "HF_ENDPOINT"
_MAX_PAGES = 2000  # of 1000 entries each
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NEXT = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel\s*=\s*"?next"?')


@dataclass(frozen=True, slots=True)
class Listing:
    """A data set at one commit.

    Attributes:
        commit: 40 hexadecimal digits.
        files: all files below the folder that was asked for; their names are relative to it.
    """

    commit: str
    files: list[RemoteFile]


def hub_url(mirror: str | None) -> str:
    """Return the address that stands for https://huggingface.co: the mirror, ``$HF_ENDPOINT``, or that one.

    Raises:
        ConfigError: it is not a web address.
    """
    return base_url(mirror or os.environ.get(ENDPOINT_ENV), HUB, OPTION)


def split_source(source: str) -> tuple[str, str]:
    """Return repository and revision of ``org/name`` or ``org/name@revision``.

    Example:
        >>> split_source("org/name"), split_source("org/name@v1")
        (('org/name', 'main'), ('org/name', 'v1'))
    """
    repository, _, revision = source.partition("@")
    return repository, revision or "main"


def dataset_page(source: str, folder: str | None = None) -> str:
    """Return the web page of a data set, or of one of its folders.

    Example:
        >>> dataset_page("org/name@v1", "audio")
        'https://huggingface.co/datasets/org/name/tree/v1/audio'
    """
    repository, revision = split_source(source)
    return f"{HUB}/datasets/{repository}/tree/{quote(revision, safe='')}" + (f"/{quote(folder)}" if folder else "")


def list_dataset(web: Web, source: str, *, folder: str | None, base: str, commit: str | None = None) -> Listing:
    """Ask for the files of a data set.

    Args:
        web: opens the connections; carries the token where one is needed.
        source: ``org/name`` or ``org/name@revision``.
        folder: only what is below this folder of the data set.
        base: address of the hub, from :func:`hub_url`.
        commit: commit of an earlier call to stay with, instead of what the revision means now.

    Raises:
        UnreachableError: no server answered.
        ShardError: there is no such data set, it may not be read, or the answer is not what the hub's API documents.
    """
    repository, revision = split_source(source)
    page = f"{HUB}/datasets/{repository}"
    url = f"{base}/api/datasets/{quote(repository)}/revision/{quote(commit or revision, safe='')}"
    what = f"The description of the data set {source}"
    begun = commit
    try:
        commit = _commit(get_json(web, url, what, option=OPTION)[0])
        url = f"{base}/api/datasets/{quote(repository)}/tree/{commit}"
        url += f"/{quote(folder, safe='')}" if folder else ""
        resolve = f"{base}/datasets/{quote(repository)}/resolve/{commit}"
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        files: dict[str, RemoteFile] = {}
        for entry in _entries(web, f"{url}?recursive=true&expand=false", what, base):
            file = _file(entry, prefix, resolve, page)
            if file is not None and files.setdefault(file.name, file) != file:
                raise OddError(f"two files called {file.name!r}")
        return Listing(commit, list(files.values()))
    except RefusedError as error:
        fact, hint = refusal(error, page)
        if begun is not None and error.code == "RevisionNotFound":
            fact = f"The commit {begun}, with which this download began, is gone"
            hint = "--replace begins again with what the data set holds now; files that are as they were are kept."
        raise ShardError(f"{fact}: {source} ({error}).", where=url, hint=hint) from error
    except OddError as error:
        raise ShardError(
            f"Wanted the files of the data set {source}, found {error}.",
            where=url,
            hint=f"Check {OPTION} and {ENDPOINT_ENV}; without them {HUB} is asked.",
        ) from None


def _commit(answer: Any) -> str:
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise OddError(f"the commit {commit!r}")
    return commit


def _entries(web: Web, url: str, what: str, base: str) -> Iterator[Any]:
    seen: set[str] = set()
    following: str | None = url
    while following is not None:
        if following in seen or len(seen) >= _MAX_PAGES:
            raise OddError("a list of files that does not end")
        seen.add(following)
        answer, headers = get_json(web, following, what, option=OPTION)
        if not isinstance(answer, list):
            raise OddError("JSON that is not a list")
        yield from answer
        following = _next_page(following, headers, base)


def _next_page(url: str, headers: Message, base: str) -> str | None:
    found = _NEXT.search(headers.get("Link") or "")
    if found is None:
        return None
    target: str = urljoin(url, found[1])
    if target.startswith(HUB + "/"):  # a mirror may pass the list on as it is
        target = base + target[len(HUB) :]
    check_url(target)
    if origin(target) != origin(base):
        raise OddError(f"a list of files that goes on at another server, {origin(target)[1]}")
    return target


def _file(entry: Any, prefix: str, resolve: str, page: str) -> RemoteFile | None:
    entry = entry if isinstance(entry, dict) else {}
    path, size, kind = entry.get("path"), entry.get("size"), entry.get("type")
    if kind == "directory":
        return None
    if kind != "file" or not isinstance(path, str) or not path or not path.isprintable():
        raise OddError(f"an entry of type {kind!r} whose path is {path!r}")
    if not path.startswith(prefix):
        raise OddError(f"the file {path!r} outside of the folder {prefix!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise OddError(f"the size {size!r} for {path}")
    large = entry.get("lfs")  # a large file: git itself holds only a pointer, whose oid is of no use here
    checksum = f"sha256:{large.get('oid')}" if isinstance(large, dict) else f"git-sha1:{entry.get('oid')}"
    if not is_checksum(checksum):
        raise OddError(f"the hash {checksum!r} for {path}")
    return RemoteFile(path[len(prefix) :], size, checksum, f"{resolve}/{quote(path)}", page)
