"""A Hugging Face Hub on this host: the part of its protocol that a push and a fetch use, over a folder.

Enters: a folder. Leaves: an address for huggingface_hub's own client. Separate because tests may use no network. A
commit is a folder `OWNER/NAME/COMMIT` with all files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:  # the name is the base class's
        """Say nothing."""

    def end_headers(self) -> None:
        """End the connection after the answer, since the thread of an open one would outlive the Hub."""
        self.send_header("Connection", "close")
        super().end_headers()

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_GET(self) -> None:
        self._resolve(with_body=True)

    def do_POST(self) -> None:
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        )
        self.asked.append(f"POST {self.path}")
        if self.path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._json({"url": f"{self._address}/{name}", "name": name})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", self.path):
            commit = self._commit(self.folder / found[1], [json.loads(line) for line in body.splitlines()])
            self._json({"commitUrl": f"{self._address}/{found[1]}/commit/{commit}", "commitOid": commit})
        else:
            self._refuse()

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _commit(self, repository: Path, operations: list[Any]) -> str:
        files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in operations[1:]}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        head = repository / "main"
        target = repository / commit
        if head.exists() and head.read_text() != commit:  # the same files again are the same commit
            shutil.copytree(repository / head.read_text(), target, dirs_exist_ok=True)
        target.mkdir(exist_ok=True)
        for name, data in files.items():
            (target / name).write_bytes(data)
        head.write_text(commit)
        return commit

    def _resolve(self, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/(.+/.+)/resolve/(.+)/(.+)", self.path)
        if found is None:
            self._refuse()
            return
        repository = self.folder / found[1]
        head = repository / found[2]
        commit = head.read_text() if head.is_file() else found[2]
        file = repository / commit / found[3]
        if not file.is_file():
            self._refuse("EntryNotFound" if repository.is_dir() else "RepoNotFound")
            return
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: str = "") -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    """A server whose end waits for the threads of its requests."""

    daemon_threads = False


@contextmanager
def local_hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A Hub over a folder: its address, and the requests that came. No thread is left afterwards."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": folder, "asked": asked})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
