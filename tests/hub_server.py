"""A small Hugging Face Hub on this machine: repositories of models in memory, by the Hub's HTTP protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of-the-tests"
Files = dict[str, bytes]


@dataclass
class Hub:
    """What the server holds, and what it was asked for."""

    address: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    """Files of every commit of every repository."""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Commit of every branch of every repository."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""

    def create(self, name: str) -> None:
        """Makes an empty repository."""
        self.commits[name], self.branches[name] = {}, {}
        self.commit(name, "main", {})

    def commit(self, name: str, branch: str, files: Files) -> str:
        """Adds files to a branch."""
        whole = {**self.commits[name].get(self.branches[name].get(branch, ""), {}), **files}
        commit = hashlib.sha1(f"{name} {len(self.commits[name])}".encode()).hexdigest()
        self.commits[name][commit] = whole
        self.branches[name][branch] = commit
        return commit

    def find(self, name: str, revision: str) -> tuple[str, Files]:
        """The commit that a branch or a commit's number means; KeyError: there is none."""
        commit = self.branches[name].get(revision, revision)
        return commit, self.commits[name][commit]


class Handler(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks when it fetches and uploads small repositories of models."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code)

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.command == "POST":
            self.post(path, body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
            self.describe(found[1], found[2] or "revision", found[3] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*found.groups())
        else:
            self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = handle_request

    def looked_up(self, name: str, revision: str) -> tuple[str, Files] | None:
        if name not in self.hub.commits:
            return self.missing("RepoNotFound")
        try:
            return self.hub.find(name, revision)
        except KeyError:
            return self.missing("RevisionNotFound")

    def describe(self, name: str, kind: str, revision: str) -> None:
        if (found := self.looked_up(name, revision)) is None:
            return
        commit, files = found
        if kind == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            self.answer(200, entries, Content_Type="application/json")
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer(200, {"id": name, "sha": commit, "siblings": siblings}, Content_Type="application/json")

    def send_file(self, name: str, revision: str, path: str) -> None:
        if (found := self.looked_up(name, revision)) is None:
            return
        commit, files = found
        if path not in files:
            return self.missing("EntryNotFound")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.answer(200, files[path], ETag=etag, X_Repo_Commit=commit)

    def post(self, path: str, body: bytes) -> None:
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            exists = name in self.hub.commits
            if not exists:
                self.hub.create(name)
            return self.answer(409 if exists else 200, {"url": f"{self.hub.address}/{name}", "name": name})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", path)
        assert found is not None, path
        name, action, branch = found.groups()
        if action == "branch":
            self.hub.branches[name].setdefault(branch, self.hub.branches[name]["main"])
            self.answer(200)
        elif action == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": modes})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.hub.commit(name, branch, files)
            url = f"{self.hub.address}/{name}/commit/{commit}"
            self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
