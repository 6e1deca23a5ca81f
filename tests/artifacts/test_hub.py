"""push and pull against a local stand-in for the hub's HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import os
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
    private: set[str]

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
            secret = asked.get("visibility") == "private" or asked.get("private")  # by version
            if repo not in self.repos and secret:
                self.private.add(repo)
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
            private = match[1] in self.private
            self.answer({"id": match[1], "sha": COMMIT, "siblings": names, "private": private})
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


ALTERED = {path.name: path.read_bytes() for path in BUNDLED.iterdir() if path.is_file()}
ALTERED["model.safetensors"] = b"\0" + ALTERED["model.safetensors"][1:]


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of a hub, and its repositories."""
    repos = {name: {"notes.txt": b"nothing"} for name in ("me/empty", "me/public")}
    repos["me/altered"] = ALTERED
    handler = type("Handler", (FakeHub,), {"repos": repos, "private": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", repos
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


COMMANDS = {
    "pushed": f"push {BUNDLED} me/mine",
    "pulled": "pull me/mine --out again --json",
    "twice": "pull me/mine --out again",
    "altered": "pull me/altered --out bad",
    "empty": "pull me/empty --out bad",
    "missing": "pull me/nothing --out x",
    "private": f"push {BUNDLED} me/secret --private",
    "private again": f"push {BUNDLED} me/secret --private",
    "public": f"push {BUNDLED} me/public --private",
    "refused": f"push {BUNDLED} me/other",
}
OTHER_TOKEN = {"refused": {"HF_TOKEN": "hf_other"}}


@pytest.fixture(scope="module")
def outcomes(hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], Path]:
    """What each command has left, and where they ran.

    In a process of its own, since huggingface-hub reads its settings when it is imported; in one
    for all, since that takes seconds.
    """
    folder = tmp_path_factory.mktemp("hub")
    program = [
        sys.executable, "-c", SEVERAL,
        json.dumps([(OTHER_TOKEN.get(n, {}), line.split()) for n, line in COMMANDS.items()]),
    ]  # fmt: skip
    settings = {
        "HF_ENDPOINT": hub[0], "HF_HOME": str(folder / "hf"), "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run(
        program, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    left = [Outcome(*outcome) for outcome in json.loads(done.stdout)]
    return dict(zip(COMMANDS, left, strict=True)), folder


def test_a_bundle_goes_up_and_comes_down(hub, outcomes) -> None:
    (found, folder), (_, repos) = outcomes, hub
    assert found["pushed"].code == 0, found["pushed"].err
    assert f"commit/{COMMIT}" in found["pushed"].out
    assert set(repos["me/mine"]) == {
        "model.json", "model.safetensors", "model.onnx", "model.int8.onnx",
    }  # fmt: skip
    assert found["pulled"].code == 0, found["pulled"].err
    assert found["pulled"].json["params"] == 468_808
    assert sorted(path.name for path in (folder / "again").iterdir()) == sorted(repos["me/mine"])
    assert Bundle.open(folder / "again").described == Bundle.open(BUNDLED).described
    assert found["twice"].is_one_line("again exists already and is not overwritten")


def test_what_was_altered_on_the_hub_is_refused(outcomes) -> None:
    found, folder = outcomes
    assert found["altered"].code == 2
    told = "me/altered/model.safetensors is damaged or was altered"
    assert found["altered"].is_one_line(told), found["altered"].err
    assert found["empty"].is_one_line("is no bundle")
    assert [path.name for path in folder.iterdir() if "bad" in path.name] == []


def test_a_push_that_is_to_be_private_writes_to_no_public_repository(hub, outcomes) -> None:
    (found, _), (_, repos) = outcomes, hub
    assert found["public"].code == 2
    told = ("me/public cannot be written: it exists and is public", "leave --private out")
    assert found["public"].is_one_line(*told), found["public"].err
    assert repos["me/public"] == {"notes.txt": b"nothing"}
    for name in ("private", "private again"):
        assert found[name].code == 0, found[name].err
    assert "model.json" in repos["me/secret"]


def test_mistakes(hub, outcomes, cli: Cli) -> None:
    found, _ = outcomes
    assert found["missing"].is_one_line("me/nothing cannot be read"), found["missing"].err
    assert cli("push", "nowhere", "me/mine").is_one_line("nowhere is no bundle")
    assert found["refused"].is_one_line("me/other cannot be written")
    assert found["refused"].code == 2
