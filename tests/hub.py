"""A Hub on this machine: as much of the real protocol as `huggingface_hub` uses to publish and to read, with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_local-secret"
LARGE = re.compile(r"\.(parquet|safetensors|png)$")


@dataclass
class Repo:
    """One repository: its commits, each all files by name."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.parquet filter=lfs\n"}])

    @property
    def sha(self) -> str:
        names = json.dumps([sorted((name, git_oid(text)) for name, text in files.items()) for files in self.commits])
        return hashlib.sha1(names.encode()).hexdigest()

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


@dataclass
class Hub:
    """What the server holds, what it was asked, and which requests go wrong."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, part of the path, status); 0 cuts the connection. Each is spent by one request."""

    def fault(self, method: str, part: str, status: int, times: int = 1) -> None:
        self.faults += [(method, part, status)] * times

    def count(self, method: str, part: str) -> int:
        return sum(each[0] == method and part in each[1] for each in self.asked)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def _go(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.asked.append((self.command, path))
        for fault in self.hub.faults:
            method, part, status = fault
            if method == self.command and part in path:
                self.hub.faults.remove(fault)
                if status:
                    return self._json({"error": "a fault"}, status)
                self.connection.close()
                self.close_connection = True
                return None
        return self._answer(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _go  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, path: str, body: bytes) -> None:
        if self.command == "PUT" and path.startswith("/objects/"):
            if hashlib.sha256(body).hexdigest() != path.rpartition("/")[2]:
                return self._json({"error": "hash"}, 400)
            self.hub.objects[path.rpartition("/")[2]] = body
            return self._json({})
        if self.command == "POST" and not self._known():
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{asked.get('type', 'model')}s/{owner}/{asked['name']}"
            if name in self.hub.repos:
                return self._json({"error": "You already created this repo"}, 409)
            self.hub.repos[name] = Repo(private=bool(asked.get("private")) or asked.get("visibility") == "private")
            return self._json({"url": f"{self.hub.address}/{name.removeprefix('models/')}"})
        if found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._api(f"{found[1]}/{found[2]}", found[3] or "", body)
        if found := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(f"{found[1] or 'models'}/{found[2]}", found[4])
        return self._json({"error": f"unknown {path}"}, 404)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self) -> None:
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            actions = {"upload": {"href": f"{self.hub.address}/objects/{each['oid']}", "header": {}}}
            objects.append(each if each["oid"] in self.hub.objects else {**each, "actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def _api(self, name: str, rest: str, body: bytes) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known()):
            return self._missing()
        if rest in ("", "revision/main") or re.fullmatch(r"revision/[0-9a-f]{40}", rest):
            siblings = [{"rfilename": each} for each in sorted(repo.files)]
            identity = name.partition("/")[2]
            found = {"_id": "1", "id": identity, "sha": repo.sha, "private": repo.private, "siblings": siblings}
            return self._json({**found, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})
        if rest.startswith("preupload/"):
            files = []
            for each in json.loads(body)["files"]:
                there = repo.files.get(each["path"])
                large = bool(LARGE.search(each["path"]))
                oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_oid(there)
                mode = "lfs" if large else "regular"
                files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self._json({"files": files})
        if rest.startswith("commit/"):
            return self._commit(repo, name, [json.loads(line) for line in body.splitlines()])
        if rest.startswith("tree/"):
            folder = rest.split("/", 2)[2].rstrip("/") + "/" if rest.count("/") > 1 else ""
            inside = [each for each in sorted(repo.files) if each.startswith(folder)]
            if "recursive=true" in self.path.lower():
                return self._json([self._entry(repo, each) for each in inside])
            children = dict.fromkeys(folder + each.removeprefix(folder).partition("/")[0] for each in inside)
            return self._json([self._entry(repo, each) for each in children])
        if rest.startswith("paths-info/"):
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return self._json([entry for each in paths if (entry := self._entry(repo, each))])
        return self._json({"error": f"unknown {rest}"}, 404)

    def _entry(self, repo: Repo, path: str) -> dict[str, Any]:
        if path not in repo.files:
            there = any(each.startswith(f"{path}/") for each in repo.files)
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0} if there else {}
        content = repo.files[path]
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if LARGE.search(path):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    def _commit(self, repo: Repo, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._json({"error": "LFS object is missing"}, 400)
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        repo.commits.append(files)
        address = f"{self.hub.address}/{name.removeprefix('models/')}/commit/{repo.sha}"
        return self._json({"success": True, "commitOid": repo.sha, "commitUrl": address, "hookOutput": ""})

    def _resolve(self, name: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._known()):
            return self._missing()
        content = repo.files.get(path)
        if content is None:
            told = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.sha}
            return self._json({"error": "no such file"}, 404, told)
        return self._send(content, 200, {"X-Repo-Commit": repo.sha, "ETag": f'"{git_oid(content)}"'})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, each in headers.items():
            self.send_header(key, each)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Serve an empty Hub on a loopback port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
