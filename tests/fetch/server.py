"""A local stand-in for Zenodo that misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

RECORD = "4711"

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


class Zenodo(ThreadingHTTPServer):
    """Serves one record.

    Attributes:
        files: bytes by name; what the record publishes unless ``published`` says something else.
        cuts: connections of a file that are cut after ``cut_after`` bytes, by name.
        busy: answers to give before anything else, by name: (status, Retry-After or None).
        hang_s: seconds of silence in the middle of the next answer, by name.
        wrong: downloads of a file that bring other bytes of the same length, by name.
        log: method, path and headers of every request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
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
        self.record: object = None
        self.links: Callable[[str], object] = lambda name: {
            "self": f"{self.url}/api/records/{RECORD}/files/{name}/content"
        }
        self.redirects: dict[str, str] = {}
        self.log: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

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


class _Handler(BaseHTTPRequestHandler):
    server: Zenodo

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.log.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        try:
            if self.path in server.redirects:
                return self._empty(302, Location=server.redirects[self.path])
            if self.path == f"/api/records/{RECORD}":
                if self._busy("record"):
                    return None
                return self._bytes(200, json.dumps(server.description()).encode())
            parts = self.path.split("/")
            name = unquote(parts[-2])
            if len(parts) < 3 or parts[-1] != "content" or name not in server.files:
                return self._empty(404)
            if not self._busy(name):
                self._file(name)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _busy(self, name: str) -> bool:
        answers = self.server.busy.get(name)
        if not answers:
            return False
        status, after = answers.pop(0)
        self._empty(status, **({} if after is None else {"Retry-After": after}))
        return True

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


def write_task(folder: Path, text: str = TASK, name: str = "birds") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path
