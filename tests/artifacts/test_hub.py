"""push and pull against a local stand-in for the hub's HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Cli, Outcome

from halfmeg.artifacts.bundle import BUNDLED, Bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """Repositories in memory: create, preupload, commit, revision, resolve."""

    repos: dict[str, dict[str, bytes]]

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, value: object, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.repos.setdefault(repo, {})
            self.answer({"url": f"{self.address}/{repo}", "name": repo, "id": repo})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.answer({"files": modes})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repos[match[1]][line["value"]["path"]] = content
            url = f"{self.address}/{match[1]}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": f"not faked: {self.path}"}, 500)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            repo = self.repos.get(match[1])
            if repo is None:
                self.answer({"error": "Repository not found"}, 404)
                return
            names = [{"rfilename": name} for name in repo]
            self.answer({"id": match[1], "sha": COMMIT, "siblings": names, "private": False})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in self.repos[match[1]].items()
                ]
            )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.repos.get(match[1], {}).get(match[2])
            if content is None:
                self.answer({"error": "Entry not found"}, 404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        else:
            self.answer({"error": f"not faked: {self.path}"}, 500)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    repos: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (FakeHub,), {"repos": repos})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield repos
    server.shutdown()
    server.server_close()


SEVERAL = """
import contextlib, io, json, os, sys
from halfmeg.__main__ import start
outcomes = []
for variables, arguments in json.loads(sys.argv[1]):
    os.environ.update(variables)
    sys.argv = ["halfmeg", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            start()
        except SystemExit as stopped:
            outcomes.append([stopped.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(outcomes))
"""


def halfmeg(*commands: str, cwd: Path, **variables: str) -> list[Outcome]:
    """Run commands in a process of their own, since huggingface-hub reads its settings on import.

    From the second one on the environment has the variables too.
    """
    each = [({} if index == 0 else variables, line.split()) for index, line in enumerate(commands)]
    program = [sys.executable, "-c", SEVERAL, json.dumps(each)]
    done = subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


def test_a_bundle_goes_up_and_comes_down(hub: dict, tmp_path: Path) -> None:
    pushed, pulled, twice = halfmeg(
        f"push {BUNDLED} me/mine", "pull me/mine --out again --json", "pull me/mine --out again",
        cwd=tmp_path,
    )  # fmt: skip
    assert pushed.code == 0, pushed.err
    assert f"commit/{COMMIT}" in pushed.out
    assert set(hub["me/mine"]) == {"model.json", "model.safetensors"}
    assert pulled.code == 0, pulled.err
    assert pulled.json["params"] == 475_240
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(hub["me/mine"])
    assert Bundle.open(tmp_path / "again").described == Bundle.open(BUNDLED).described
    assert twice.is_one_line("again exists already and is not overwritten")


def test_what_was_altered_on_the_hub_is_refused(hub: dict, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in BUNDLED.iterdir() if path.is_file()}
    hub["me/mine"] = files | {"model.safetensors": b"\0" + files["model.safetensors"][1:]}
    hub["me/empty"] = {"notes.txt": b"nothing"}
    refused, empty = halfmeg("pull me/mine --out bad", "pull me/empty --out bad", cwd=tmp_path)
    assert refused.code == 2
    assert refused.is_one_line("me/mine/model.safetensors is damaged or was altered"), refused.err
    assert empty.is_one_line("is no bundle")
    left = [path.name for path in tmp_path.iterdir() if "bad" in path.name]
    assert left == []


def test_mistakes(hub: dict, cli: Cli, tmp_path: Path) -> None:
    missing, refused = halfmeg(
        "pull me/nothing --out x", f"push {BUNDLED} me/mine", cwd=tmp_path, HF_TOKEN="hf_other"
    )
    assert missing.is_one_line("me/nothing cannot be read"), missing.err
    assert cli("push", "nowhere", "me/mine").is_one_line("nowhere is no bundle")
    assert refused.is_one_line("me/mine cannot be written")
    assert refused.code == 2
