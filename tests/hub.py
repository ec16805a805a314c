"""A hub of our own: a loopback server that speaks as much of Hugging Face's protocol as a download needs.

It serves `root/OWNER/NAME/…` at one commit, large files through a redirect, with ranges. It can break: see `Hub`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import Counter
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

LARGE = (".bin", ".ckpt", ".safetensors")
CHUNK = 1 << 14


class Hub(AbstractContextManager):
    """Serves while it is entered.

    sent: bytes sent of each file. flipped: a file whose bytes arrive changed. limit: after so many bytes of large files
    the line breaks, and the hub answers 503 until `limit` is None.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.sent, self.requests = root, Counter(), 0
        self.flipped: str | None = None
        self.limit: int | None = None
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    @property
    def broken(self) -> bool:
        return self.limit is not None and sum(self.sent.values()) >= self.limit


class _Server(ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """Whoever asked may have gone in the middle of an answer; that is no news for the terminal."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*arguments)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.requests += 1
        path = unquote(self.path)
        if self.hub.broken:
            self._answer(503, b"{}")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._model(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path.startswith("/large/"):
            self._file(self.hub.root / path.removeprefix("/large/"))
        else:
            self._answer(404, b"{}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.hub.requests += 1
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", unquote(self.path))
        if not match or self.hub.broken:
            self._answer(503 if match else 404, b"{}")
            return
        folder = self.hub.root / match[1]
        names = [name for name in parse_qs(content)["paths"] if (folder / name).is_file()]
        self._answer(200, json.dumps([self._info(folder, name) for name in names]).encode())

    def _model(self, repository: str, revision: str) -> None:
        commit = self.hub.commit(repository)
        if not (self.hub.root / repository).is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision == "gone":
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(200, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())

    def _info(self, folder: Path, name: str) -> dict:
        content = (folder / name).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        info = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            info["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return info

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        path = self.hub.root / repository / name
        if commit != self.hub.commit(repository) or not path.is_file():
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif name.endswith(LARGE):
            headers = {"X-Repo-Commit": commit, "Location": f"/large/{repository}/{name}"}
            self._answer(302, b"", headers | {"X-Linked-Size": str(path.stat().st_size)})
        else:
            self._file(path)

    def _file(self, path: Path) -> None:
        content = path.read_bytes()
        if path.name == self.hub.flipped:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        for position in range(start, len(content), CHUNK):
            if self.hub.broken:
                self.close_connection = True  # in the middle of a file
                return
            chunk = content[position : position + CHUNK]
            self.wfile.write(chunk)
            self.hub.sent[path.relative_to(self.hub.root).as_posix()] += len(chunk)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
