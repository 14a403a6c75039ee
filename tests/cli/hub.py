"""A hub on this machine: the part of huggingface.co's HTTP interface that loading needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ABOUT = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+(/.*)?)?")
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class Handler(BaseHTTPRequestHandler):
    """Answers for the folders ``models/<owner>/<name>`` and ``datasets/<owner>/<name>``."""

    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        """What a repository is and holds, and its files."""
        self.asked.append(self.path)
        path = unquote(urlsplit(self.path).path)
        if about := ABOUT.fullmatch(path):
            kind, name, what, below = about.groups()
            folder = self.root / kind / name
            if not folder.is_dir():
                self.say(404, X_Error_Code="RepoNotFound")
            elif what == "tree":
                self.list(folder, (below or "").strip("/"), "recursive=true" in self.path)
            else:
                self.describe(folder, name)
        elif file := FILE.fullmatch(path):
            kind, name, inside = file.groups()
            self.send(self.root / (kind or "models") / name / inside)
        else:
            self.say(404)

    do_HEAD = do_GET  # noqa: N815

    def describe(self, folder: Path, name: str) -> None:
        found = (path for path in folder.rglob("*") if path.is_file())
        files = [file.relative_to(folder).as_posix() for file in found]
        about: dict[str, Any] = {"id": name, "sha": COMMIT, "private": False, "tags": []}
        about["siblings"] = [{"rfilename": file} for file in files]
        self.say(200, json.dumps(about).encode())

    def list(self, folder: Path, below: str, recursive: bool) -> None:
        if not (folder / below).is_dir():
            self.say(404, X_Error_Code="EntryNotFound")
            return
        found = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
        listed = [{"path": path.relative_to(folder).as_posix(), **facts(path)} for path in found]
        self.say(200, json.dumps(listed).encode())

    def send(self, file: Path) -> None:
        if file.is_file():
            self.say(200, file.read_bytes(), ETag=f'"{facts(file)["oid"]}"', X_Repo_Commit=COMMIT)
        else:
            self.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Silence."""


def facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"type": "directory", "size": 0, "oid": COMMIT}
    oid = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"type": "file", "size": path.stat().st_size, "oid": oid}


@contextmanager
def serving(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and what it is asked for."""
    asked: list[str] = []
    handler = type("Handler", (Handler,), {"root": root, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
