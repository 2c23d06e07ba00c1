"""A Hugging Face hub of one data set on this machine: what huggingface_hub asks of the real one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "someone/latents"
TOKEN = "hf_0123456789abcdef"
#: Files of this size and above go to the large file storage.
LARGE_BYTES = 2000


@dataclass
class Hub:
    """url: its endpoint. files: of the data set; None: it is not there. large: what was uploaded, by name.

    uploads: how many were. most_uploads: after which every other one breaks off; refuse: the status of all
    requests that write; forbids: whether data sets cannot be created.
    """

    url: str = ""
    files: dict[str, bytes] | None = None
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    uploads: int = 0
    most_uploads: int | None = None
    refuse: int | None = None
    messages: dict[int, str] = field(default_factory=lambda: {403: "you are not allowed"})


class Handler(BaseHTTPRequestHandler):
    """Answers for one hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": f"{len(data)}", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _error(self, status: int, message: str, code: str = "") -> None:
        data = json.dumps({"error": message}).encode()
        self._send(status, data, X_Error_Message=message, X_Error_Code=code)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._error(401, "Invalid username or password.")
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        files = self.hub.files
        if files is None:
            self._error(404, "Repository not found", "RepoNotFound")
        elif match := re.fullmatch(rf"/datasets/{REPO}/resolve/main/(.*)", path):
            self._file(match[1])
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/tree/main/?(.*)", path):
            asked = parse_qs(urlsplit(self.path).query).get("recursive", [""])
            self._json(self._tree(match[1], recursive=asked[0].lower() == "true"))
        elif path.startswith(f"/api/datasets/{REPO}"):
            self._json({"id": REPO, "sha": f"{len(self.hub.commits):040d}", "siblings": []})
        else:
            self._error(404, f"no {path}", "EntryNotFound")

    def _file(self, path: str) -> None:
        data = (self.hub.files or {}).get(path)
        if data is None:
            self._error(404, f"no {path}", "EntryNotFound")
        elif match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            part = data[int(match[1]) : int(match[2]) + 1 if match[2] else None]
            self._send(206, part, Content_Range=f"bytes {match[1]}-/{len(data)}")
        else:
            self._send(200, data, ETag=_oid(data))

    def _tree(self, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        start, found = f"{folder}/" if folder else "", dict[str, dict[str, Any]]()
        for path in sorted(self.hub.files or {}):
            if path.startswith(start):
                parts = path[len(start) :].split("/")
                for depth in range(1, len(parts)):
                    above = start + "/".join(parts[:depth])
                    if recursive or depth == 1:
                        found[above] = {"type": "directory", "path": above, "oid": "0", "size": 0}
                if recursive or len(parts) == 1:
                    found[path] = self._facts(path)
        return list(found.values())

    def _facts(self, path: str) -> dict[str, Any]:
        data = (self.hub.files or {})[path]
        return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.uploads += 1
        if self.hub.most_uploads is not None and self.hub.uploads > self.hub.most_uploads:
            self._error(403, "the upload was cut off")
            return
        self.hub.large[self.path.rsplit("/", 1)[-1]] = data
        self._send(200)

    def do_POST(self) -> None:
        body, path = self._body(), urlsplit(self.path).path
        reads = path.endswith("paths-info/main")
        if not reads and not self._is_known():
            return
        if not reads and self.hub.refuse:
            status = self.hub.refuse
            self._error(status, self.hub.messages.get(status, "no"))
        elif path == "/api/repos/create":
            is_there, self.hub.files = self.hub.files is not None, self.hub.files or {}
            self._json({"url": f"{self.hub.url}/datasets/{REPO}"}, 409 if is_there else 200)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.hub.files is None:
            self._error(404, "Repository not found", "RepoNotFound")
        elif path.endswith("preupload/main"):
            self._json({"files": [self._mode(one) for one in json.loads(body)["files"]]})
        elif path.endswith("objects/batch"):
            self._json({"objects": [self._place(one) for one in json.loads(body)["objects"]]})
        elif path.endswith("commit/main"):
            self._commit([json.loads(line) for line in body.splitlines()])
        elif reads:
            names = parse_qs(body.decode())["paths"]
            tree = {one["path"]: one for one in self._tree("", recursive=True)}
            self._json([tree[name] for name in names if name in tree])
        else:
            self._error(404, f"no {path}")

    def _mode(self, asked: dict[str, Any]) -> dict[str, Any]:
        data = (self.hub.files or {}).get(asked["path"])
        return {
            "path": asked["path"],
            "uploadMode": "lfs" if asked["size"] >= LARGE_BYTES else "regular",
            "shouldIgnore": False,
            "oid": None if data is None else _oid(data),
        }

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.hub.url}/large/{asked['oid']}"}}
        there = asked["oid"] in self.hub.large
        return {**asked, **({} if there else {"actions": upload})}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        assert self.hub.files is not None
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del self.hub.files[value["path"]]
        self.hub.commits.append([line["value"].get("path", "") for line in lines[1:]])
        oid = f"{len(self.hub.commits):040d}"
        self._json({"commitUrl": f"{self.hub.url}/datasets/{REPO}/commit/{oid}", "commitOid": oid})


def _oid(data: bytes) -> str:
    """The name that git gives these bytes; of large files that of a pointer, which is no one's here."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
