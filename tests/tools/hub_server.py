"""The Hugging Face hub, played by a server on this machine: downloads and refusals; repositories, uploads, commits."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0" * 40
PAGE = 50
"""Files of a page of a listing."""
LARGE_BYTES = 16_000
"""Larger files, and those of weights, are kept apart from git."""


@dataclass
class Repo:
    """A repository."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})
    commits: list[list[str]] = field(default_factory=list)
    """Names of the files of each commit."""


def is_large(name: str, size: int) -> bool:
    return name.endswith(".safetensors") or size > LARGE_BYTES


def blob_of(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The hub's answers, as far as ``huggingface_hub`` asks."""

    files: ClassVar[Mapping[str, bytes]] = {}
    """Files that can be downloaded without an account, by OWNER/NAME/FILE."""
    requests: ClassVar[list[str]] = []
    repos: ClassVar[dict[str, Repo]] = {}
    """By ``models/OWNER/NAME`` or ``datasets/OWNER/NAME``."""
    large: ClassVar[dict[str, bytes]] = {}
    """By SHA-256."""
    uploads: ClassVar[list[str]] = []
    """SHA-256 of what was uploaded, each time that it was."""
    refuse: ClassVar[Callable[[str, str], int]] = lambda method, path: 0
    """Status with which a request is refused; 0 answers it."""
    token: ClassVar[str] = "hf_" + "x" * 20
    """Of the one account."""

    @property
    def _home(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/api/"):
            return self._api()
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        there = self.repos.get(repo if repo.startswith("datasets/") else f"models/{repo}")
        if there is not None and rest:
            found = there.branches.get(unquote(revision), there.branches["main"])
            return self._file(found.get(unquote(name)), "" if unquote(name) in found else "EntryNotFound")
        body = self.files.get(f"{repo}/{name}", b"")
        error = ""
        if repo == "owner/gated":
            error = "GatedRepo"
        elif repo == "owner/private":
            error = "RepoNotFound"
        elif rest.startswith("nowhere/"):
            error = "RevisionNotFound"
        elif rest and not body:
            error = "EntryNotFound"
        self._file(body, error)

    do_HEAD = do_GET

    def _file(self, body: bytes | None, error: str) -> None:
        body = body or b""
        status = {"": 200, "GatedRepo": 403, "RepoNotFound": 401}.get(error, 404)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part and status == 200:
            status, start, stop = 206, int(part[1]), int(part[2]) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
            body = body[start:stop]
        self._answer(status, body, headers | ({"X-Error-Code": error} if error else {}))

    def do_POST(self) -> None:
        self.requests.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._json({"error": "Invalid username or password."}, 401)
        status = type(self).refuse("POST", self.path)
        if status:
            return self._json({"error": f"refused, {self.headers['Authorization']}"}, status)
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            if name in self.repos:
                return self._json({"error": "You already created this repo", "url": "x"}, 409)
            self.repos[name] = Repo(asked.get("visibility") == "private" or asked.get("private", False))
            return self._json({"url": f"{self._home}/{name.removeprefix('models/')}", "id": name})
        self._api(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = type(self).refuse("PUT", self.path)
        if status:
            return self._json({"error": "refused"}, status)
        digest = hashlib.sha256(body).hexdigest()
        assert self.path == f"/lfs/{digest}"
        self.large[digest] = body
        self.uploads.append(digest)
        self._answer(200, b"", {})

    def _api(self, body: bytes = b"") -> None:
        url = urlsplit(self.path)
        match = re.fullmatch(
            r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/([\w-]+)/([^/]+))?(?:/(.+))?", url.path
        )
        repo = self.repos.get(match[1]) if match else None
        if match is None or repo is None or self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        what, branch = match[2], unquote(match[3] or "main")
        if what == "branch":
            if branch in repo.branches:
                return self._json({"error": "exists"}, 409)
            repo.branches[branch] = dict(repo.branches["main"])
            return self._json({})
        if branch not in repo.branches:
            return self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        there = repo.branches[branch]
        if what in (None, "revision"):
            owner_name = match[1].partition("/")[2]
            return self._json(
                {"id": owner_name, "sha": COMMIT, "private": repo.private, "siblings": [], "tags": []}
            )
        if what == "paths-info":
            return self._json(_listed(there, parse_qs(body.decode())["paths"]))
        if what == "tree" and match[4]:
            there = {name: body for name, body in there.items() if name.startswith(f"{unquote(match[4])}/")}
            if not there:
                return self._json({"error": "no such path"}, 404, {"X-Error-Code": "EntryNotFound"})
        if what == "tree":
            return self._tree(there, int(parse_qs(url.query).get("cursor", ["0"])[0]))
        if what == "preupload":
            return self._json({"files": [self._mode(each, there) for each in json.loads(body)["files"]]})
        assert what == "commit", self.path
        names = []
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                there[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                there[value["path"]] = self.large[value["oid"]]
            if "path" in value:
                names.append(value["path"])
        repo.commits.append(names)
        page = match[1].removeprefix("models/")
        self._json(
            {"commitUrl": f"{self._home}/{page}/commit/{COMMIT}", "commitOid": COMMIT, "pullRequestUrl": None}
        )

    def _tree(self, there: Mapping[str, bytes], start: int) -> None:
        listed = _listed(there, there.keys())
        headers = {}
        if start + PAGE < len(listed):
            url = (
                urlsplit(self.path)
                ._replace(query=f"recursive=True&expand=False&cursor={start + PAGE}")
                .geturl()
            )
            headers["Link"] = f'<{self._home}{url}>; rel="next"'
        self._json(listed[start : start + PAGE], 200, headers)

    def _mode(self, asked: Mapping[str, Any], there: Mapping[str, bytes]) -> dict[str, Any]:
        name, body = asked["path"], there.get(asked["path"])
        large = is_large(name, asked["size"])
        oid = None
        if body is not None:
            oid = hashlib.sha256(body).hexdigest() if is_large(name, len(body)) else blob_of(body)
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _batch(self, asked: Mapping[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            about = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.large:
                about["actions"] = {"upload": {"href": f"{self._home}/lfs/{each['oid']}"}}
            objects.append(about)
        self._json({"transfer": "basic", "objects": objects})

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._answer(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _listed(there: Mapping[str, bytes], names: Collection[str]) -> list[dict[str, Any]]:
    """What the hub says of files; folders are listed where they are asked for by name."""
    listed: list[dict[str, Any]] = []
    for name, body in sorted((name, body) for name, body in there.items() if name in names):
        about: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": blob_of(body)}
        if is_large(name, len(body)):
            about["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        listed.append(about)
    folders = {name for name in names if any(each.startswith(f"{name}/") for each in there)}
    return listed + [{"type": "directory", "path": name, "oid": COMMIT} for name in sorted(folders)]


@contextmanager
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """The server, empty, and the client pointed to it; without an account."""
    import huggingface_hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    point_hub_to(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    FakeHub.files, FakeHub.requests, FakeHub.repos, FakeHub.large, FakeHub.uploads = {}, [], {}, {}, []
    FakeHub.refuse = lambda method, path: 0
    yield FakeHub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account of the fake hub, as its users have it."""
    monkeypatch.setenv("HF_TOKEN", FakeHub.token)


def point_hub_to(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    # a storage of its own, which is not played here
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
