"""Local stand-ins for Zenodo, for the Hugging Face hub and for where it keeps large files. They misbehave on request."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

RECORD = "4711"
COMMIT = "c0" * 20
SMALL = 100

TASK = """
format = 1
name = "birds"
title = "Birds"
domain = "environment"
[data]
zenodo = "4711"
splits = { train = ["train-{0..1}.tar"], test = ["test-*.tar"] }
[target]
kind = "single-label"
key = "species"
labels = ["robin", "wren"]
[metric]
name = "accuracy"
"""

HUB_TASK = TASK.replace('zenodo = "4711"', 'hf = "org/birds"')


class Misbehaving(ThreadingHTTPServer):
    """Serves files.

    Attributes:
        files: bytes by name.
        published: what the description says of them; the same unless a test changes it.
        cuts: connections of a file that are cut after ``cut_after`` bytes, by name.
        busy: answers to give before anything else, by name: (status, Retry-After or None).
        hang_s: seconds of silence in the middle of the next answer, by name.
        wrong: downloads of a file that bring other bytes of the same length, by name.
        redirects: where a path leads.
        log: path and headers of every request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files = files
        self.published: dict[str, bytes] = dict(files)
        self.cuts: dict[str, int] = {}
        self.cut_after = 1000
        self.busy: dict[str, list[tuple[int, str | None]]] = {}
        self.wrong: dict[str, int] = {}
        self.ignore_range = False
        self.refuse_range = False
        self.etag: Callable[[str], str | None] = lambda name: f'"{hashlib.md5(self.files[name]).hexdigest()}"'
        self.honour_if_range = True
        self.modified: str | None = None
        self.length = True
        self.block_s = 0.0
        self.hang_s: dict[str, float] = {}
        self.redirects: dict[str, str] = {}
        self.log: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Zenodo(Misbehaving):
    """Serves one record; ``record`` is its description when a test wants an odd one."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files, _ZenodoHandler)
        self.record: object = None
        self.links: Callable[[str], object] = lambda name: {
            "self": f"{self.url}/api/records/{RECORD}/files/{name}/content"
        }

    def requests_of(self, name: str) -> list[dict[str, str]]:
        return [headers for path, headers in self.log if f"/files/{quote(name)}/" in path]

    def description(self) -> object:
        if self.record is not None:
            return self.record
        return {
            "id": int(RECORD),
            "files": [
                {
                    "id": "x",
                    "key": name,
                    "size": len(data),
                    "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
                    "links": self.links(name),
                }
                for name, data in self.published.items()
            ],
        }


class Handler(BaseHTTPRequestHandler):
    server: Misbehaving

    def route(self) -> None:
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.log.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        try:
            if self.path in server.redirects:
                self._empty(302, Location=server.redirects[self.path])
                return
            self.route()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _busy(self, name: str) -> bool:
        answers = self.server.busy.get(name)
        if not answers:
            return False
        status, after = answers.pop(0)
        self._empty(status, **({} if after is None else {"Retry-After": after}), **self.extra(status))
        return True

    def extra(self, status: int) -> dict[str, str]:
        """Headers that go with a status, besides."""
        return {}

    def _empty(self, status: int, **headers: str) -> None:
        self._bytes(status, b"", **headers)

    def _bytes(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, name: str) -> None:
        server, whole = self.server, self.server.files[name]
        etag, start, status = server.etag(name), 0, 200
        asked = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, etag, server.modified) or not server.honour_if_range
        if asked and server.refuse_range:
            return self._empty(416)
        if asked and not server.ignore_range and fresh:
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        data = whole[start:]
        if server.wrong.get(name, 0) > 0:
            server.wrong[name] -= 1
            data = bytes(255 - byte for byte in data)
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if server.length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if server.cuts.get(name, 0) > 0:
            server.cuts[name] -= 1
            data = data[: server.cut_after]
        if pause := server.hang_s.pop(name, 0.0):
            self.wfile.write(data[: server.cut_after])
            data = data[server.cut_after :]
            self.wfile.flush()
            time.sleep(pause)
        step = 500 if server.block_s else 1 << 20
        for at in range(0, len(data), step):
            self.wfile.write(data[at : at + step])
            self.wfile.flush()
            time.sleep(server.block_s)
        self.close_connection = True


class _ZenodoHandler(Handler):
    server: Zenodo

    def route(self) -> None:
        server = self.server
        if self.path == f"/api/records/{RECORD}":
            if not self._busy("record"):
                self._bytes(200, json.dumps(server.description()).encode())
            return
        parts = self.path.split("/")
        name = unquote(parts[-2])
        if len(parts) < 3 or parts[-1] != "content" or name not in server.files:
            self._empty(404)
        elif not self._busy(name):
            self._file(name)


class Cdn(Misbehaving):
    """Serves large files by their SHA-256 under signed addresses, as the hub's redirects lead to them.

    Attributes:
        key: the part of an address that shows that the hub sent the request here.
        refusals: how many requests to refuse as if their addresses had expired, by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files, _CdnHandler)
        self.key = "Signature=0"
        self.refusals: dict[str, int] = {}

    def requests_of(self, name: str) -> list[dict[str, str]]:
        return [headers for path, headers in self.log if path.startswith(f"/cdn/{quote(name)}?")]


class _CdnHandler(Handler):
    server: Cdn

    def route(self) -> None:
        server = self.server
        path, _, query = self.path.partition("?")
        name = unquote(path.removeprefix("/cdn/"))
        if server.refusals.get(name, 0) > 0:
            server.refusals[name] -= 1
            self._empty(403)
        elif query != server.key or "Authorization" in self.headers:  # as the stores behind the hub do
            self._empty(400)
        elif name not in server.files:
            self._empty(404)
        elif not self._busy(name):
            self._file(name)


class Hub(Misbehaving):
    """Serves the data set ``org/birds``: files of up to 100 bytes itself, larger ones by redirects to a :class:`Cdn`.

    Attributes:
        commits: files by commit.
        branches: commit by branch.
        cdn: where large files are.
        token: what a request must carry; None for a public data set.
        accepted: whether the terms of a gated data set are accepted; None when it is not gated.
        page_size: entries of a page of the list.
        entries: the list of files, when a test wants an odd one.
        info: the description of the data set, when a test wants an odd one.
        next_page: makes the address of the next page.
        rate_limit: RateLimit header of refusals with 429.
    """

    def __init__(self, files: dict[str, bytes], cdn: Cdn) -> None:
        super().__init__(files, _HubHandler)
        self.cdn = cdn
        self.commits = {COMMIT: files}
        self.branches = {"main": COMMIT}
        self.token: str | None = None
        self.accepted: bool | None = None
        self.page_size = 1000
        self.entries: object = None
        self.info: object = None
        self.next_page: Callable[[str], str] = lambda path: self.url + path
        self.rate_limit: str | None = None

    def requests_of(self, name: str) -> list[dict[str, str]]:
        return [headers for path, headers in self.log if "/resolve/" in path and path.endswith("/" + quote(name))]

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)

    def tree(self, commit: str, folder: str) -> list[object]:
        entries: list[object] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "some"}] * (not folder)
        for path, data in self.commits[commit].items():
            if path.startswith(f"{folder}/" if folder else ""):
                entry: dict[str, object] = {"type": "file", "size": len(data), "path": path, "oid": "1" * 40}
                if len(data) > SMALL:
                    digest = hashlib.sha256(data).hexdigest()
                    entry |= {"lfs": {"oid": digest, "size": len(data), "pointerSize": 134}, "xetHash": "2" * 64}
                else:
                    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entries.append(entry)
        return entries


class _HubHandler(Handler):
    server: Hub

    def route(self) -> None:
        server = self.server
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.removeprefix("/api").split("/")[1:]]
        asked = self.headers.get("Authorization")
        if parts[:3] != ["datasets", "org", "birds"] or len(parts) < 5:
            return self._refuse(404 if asked else 401, "RepoNotFound", "Repository not found")
        if asked not in (None, f"Bearer {server.token or 'any'}"):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if server.token is not None and asked is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        verb, revision, rest = parts[3], parts[4], "/".join(parts[5:])
        commit = server.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if verb == "revision":
            return None if self._busy("info") else self._json(server.info or {"id": "org/birds", "sha": commit})
        if verb == "tree":
            return (
                None if self._busy("tree") else self._tree(address.path, dict(parse_qsl(address.query)), commit, rest)
            )
        if server.accepted is False:
            return self._refuse(403 if asked else 401, "GatedRepo", "Access to dataset org/birds is restricted.")
        if rest not in server.commits[commit]:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if self._busy(rest):
            return None
        if len(server.commits[commit][rest]) > SMALL:
            return self._empty(302, Location=f"{server.cdn.url}/cdn/{quote(rest)}?{server.cdn.key}")
        self._bytes(200, server.commits[commit][rest], ETag='"small"')

    def _tree(self, path: str, query: dict[str, str], commit: str, folder: str) -> None:
        server = self.server
        assert (query["recursive"], query["expand"]) == ("true", "false")
        entries = server.tree(commit, folder) if server.entries is None else server.entries
        if isinstance(entries, list):
            if not entries:
                return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            start = int(query.get("cursor", "0"))
            stop = start + server.page_size
            headers = {}
            if stop < len(entries):
                following = server.next_page(f"{path}?recursive=true&expand=false&cursor={stop}")
                headers["Link"] = f'<{following}>; rel="next"'
            return self._bytes(200, json.dumps(entries[start:stop]).encode(), **headers)
        self._json(entries)

    def extra(self, status: int) -> dict[str, str]:
        return {"RateLimit": self.server.rate_limit} if status == 429 and self.server.rate_limit else {}

    def _json(self, value: object) -> None:
        self._bytes(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._empty(status, **{"X-Error-Code": code, "X-Error-Message": message})


def write_task(folder: Path, text: str = TASK, name: str = "birds") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path
