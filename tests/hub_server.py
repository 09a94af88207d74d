"""A small Hugging Face Hub: the endpoints that huggingface_hub asks, on a local port, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree|preupload|commit)/([^/?]+))?")


@dataclass
class Repo:
    """Revisions by commit; ``main`` is the last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes], gone: set[str] = frozenset()) -> str:
        before = self.commits[self.head] if self.commits else {}
        content = {name: data for name, data in before.items() if name not in gone}
        content.update(files)
        text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(content.items())})
        sha = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[sha] = content
        return sha


class Hub:
    """The server; ``hub.url`` is its address.

    Attributes:
        repos: Repositories by name.
        asked: How often each method and path was asked for.
        statuses: Answers to give instead, by method and end of a path, first to last.
        cut: Bytes after which the next download breaks off, each once.
        delay: Seconds before every answer.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.statuses: dict[tuple[str, str], list[int]] = {}
        self.cut: list[int] = []
        self.delay = 0.0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def push(self, name: str, folder: Path, **metadata) -> str:
        """Adds the files of a folder as a commit; returns its name."""
        repo = self.repos.setdefault(name, Repo(**metadata))
        return repo.commit({p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        length = headers.pop("length", len(data))
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.answer(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message or code)

    def handle_one(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked[f"{self.command} {path}"] += 1
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(self.hub.delay)
        for (method, end), statuses in self.hub.statuses.items():
            if method == self.command and path.endswith(end) and statuses:
                self.answer(statuses.pop(0), {"error": "on demand"})
                return
        if found := _RESOLVE.fullmatch(path):
            self.resolve(*found.groups())
        elif path.startswith("/cdn/"):
            self.download(self.hub.blobs[path.removeprefix("/cdn/")])
        elif path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.blobs[oid] = self.body
            self.answer(200)
        elif path.endswith("/info/lfs/objects/batch"):
            self.lfs()
        elif path == "/api/repos/create":
            metadata = json.loads(self.body)
            name = f"{metadata['organization']}/{metadata['name']}"
            known = name in self.hub.repos
            self.hub.repos.setdefault(name, Repo())
            self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := _API.fullmatch(path):
            self.api(*found.groups())
        else:
            self.refuse(404, "NotFound", path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def repo(self, name: str) -> Repo | None:
        """The repository, if the token may read it; else the answer is sent."""
        repo, token = self.hub.repos.get(name), self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and token != repo.token and not repo.gated):
            self.refuse(404 if token and repo is None else 401, "RepoNotFound")
        elif repo.gated and token != repo.token:
            self.refuse(403 if token else 401, "GatedRepo")
        else:
            return repo
        return None

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        sha = repo.head if revision == "main" else revision
        if sha not in repo.commits:
            self.refuse(404, "RevisionNotFound")
        elif file not in repo.commits[sha]:
            self.refuse(404, "EntryNotFound")
        else:
            data = repo.commits[sha][file]
            if file.endswith(".safetensors"):
                oid = hashlib.sha256(data).hexdigest()
                self.hub.blobs[oid] = data
                elsewhere = self.hub.url.replace(
                    "127.0.0.1", "localhost"
                )  # the client follows its own host's by itself
                linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(data))}
                self.answer(302, X_Repo_Commit=sha, ETag=f'"{sha}"', Location=f"{elsewhere}/cdn/{oid}", **linked)
            else:
                self.answer(200, data, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def download(self, data: bytes) -> None:
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
            part = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.answer(206, data[start:], **part)
        elif self.hub.cut and self.command == "GET":
            self.answer(200, data[: self.hub.cut.pop(0)], length=len(data))
            self.close_connection = True
        else:
            self.answer(200, data)

    def api(self, name: str, what: str | None, revision: str | None) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        if what == "preupload":
            files = json.loads(self.body)["files"]
            modes = ["lfs" if f["path"].endswith(".safetensors") else "regular" for f in files]
            answers = [
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for f, mode in zip(files, modes, strict=True)
            ]
            self.answer(200, {"files": answers})
        elif what == "commit":
            lines = [json.loads(line) for line in self.body.splitlines()]
            new, gone = {}, set()
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    gone.add(value["path"])
                elif line["key"] == "lfsFile":
                    new[value["path"]] = self.hub.blobs[value["oid"]]
            sha = repo.commit(new, gone)
            self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})
        else:
            sha = repo.head if revision in (None, "main") and repo.commits else revision
            files = repo.commits.get(sha, {})
            if what == "tree":
                tree = [
                    {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for p, d in files.items()
                ]
                self.answer(200, tree)
            else:
                metadata = {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "downloads": 0}
                self.answer(200, {**metadata, "siblings": [{"rfilename": p} for p in files]})

    def lfs(self) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})
