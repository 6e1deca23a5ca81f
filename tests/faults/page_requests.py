"""A day of requests to the page, as fast as it answers: images, damaged images, and attacks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inputs import mutate_json
from tally import RequestTally

from halfmeg.shipping.demo import draw_examples
from halfmeg.shipping.gate import ASK, KEEP_SECONDS, UPLOAD

FORM = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
JSON = {"Content-Type": "application/json"}
READ = "/gradio_api/queue/data?session_hash="
STEPS = 16
"""So many parts has a day, after each of which the server's memory is read."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page in a process of its own; `told` in the folder is what it prints."""
    (folder / "tmp").mkdir()
    with (
        (folder / "told").open("w") as told,
        subprocess.Popen(
            [sys.executable, "-m", "halfmeg", "demo"], stdout=subprocess.PIPE, stderr=told,
            text=True, env=os.environ | {"TMPDIR": str(folder / "tmp")},
        ) as server,
    ):  # fmt: skip
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[0].rstrip("/"), server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def send(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return the status, 0 where there was no answer, and what was answered."""
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(address + path, body, fields)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, http.client.HTTPException):
        return 0, b""


def question(path: object, **changes: object) -> bytes:
    """Return what the page's script asks about an upload."""
    sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
    whole = {"data": [sent], "fn_index": 1, "session_hash": "abc"}
    return json.dumps(whole | changes).encode()


def upload(address: str, content: bytes) -> str:
    """Upload a file; return the path that the page gave it, or nothing."""
    status, told = send(address, UPLOAD, FORM + content + b"\r\n--x--\r\n", **MULTIPART)
    return str(json.loads(told)[0]) if status == 200 else ""


def ask(address: str, body: bytes) -> str:
    """Ask the page; return the class or whatever else it answers, or how it refused."""
    status, _ = send(address, ASK, body, **JSON)
    if status != 200:
        return str(status)
    _, stream = send(address, READ + json.loads(body)["session_hash"])
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: ")]
    for event in events:
        if event["msg"] == "process_completed":
            output = event["output"]
            if not event["success"]:
                return str(output["error"])
            given = output["data"][0]
            return str(given.get("label", "an example") if given else "nothing")
    return "no answer"


def memory(process: int) -> int:
    """Return the resident memory of a process, in bytes."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


def run_requests(kind: str, first: int, count: int) -> RequestTally:
    """Ask good and bad things: no wrong answer, no traceback, no growth, nothing left."""
    tally = RequestTally()
    with tempfile.TemporaryDirectory(prefix="faults-") as name, serving(Path(name)) as at:
        folder, (address, server) = Path(name), at
        rng = random.Random(f"{kind} {first}")
        own = set((folder / "tmp").rglob("*"))
        sizes = []
        for number in range(first, first + count):
            if count >= STEPS and (number - first) % (count // STEPS) == 0:
                sizes.append(memory(server.pid))
            told = one_request(address, folder, rng, tally, str(number))
            tally.cases += 1
            if told:
                tally.wrong += 1
                tally.told.append(f"{kind} {number}: {told}")
        sizes.append(memory(server.pid))
        tally.peak_bytes = max(sizes) - sizes[len(sizes) // 4]
        tally.leftovers = old_uploads(folder / "tmp", own)
        printed = (folder / "told").read_text().splitlines()
        tally.lines = max(0, len(printed) - tally.refused)
        tally.lines += sum(line.startswith(("Traceback", "  File")) for line in printed)
        for what in ("leftovers", "lines"):
            if getattr(tally, what):
                tally.told.append(f"{kind}: {getattr(tally, what)} {what}; {printed[-1:]}")
    return tally


def old_uploads(folder: Path, own: set[Path]) -> int:
    """Return how many files, or folders of none, lie there longer than they may.

    Args:
        folder: of the page.
        own: what lay there before anything was asked; gradio makes a folder for itself.
    """
    old = 0
    for path in {*folder.rglob("*")} - own:
        with contextlib.suppress(OSError):  # it is deleted just now
            if path.is_file() or not any(path.iterdir()):
                old += time.time() - path.stat().st_mtime > KEEP_SECONDS + 5
    return old


def one_request(
    address: str, folder: Path, rng: random.Random, tally: RequestTally, session: str
) -> str:
    """Ask one thing; return what was wrong with the answer."""
    (image,) = draw_examples(["ship"], folder)
    what = rng.randrange(8)
    if what < 2:  # a good image, or something in its place
        damaged = rng.random() < 0.3
        content = rng.randbytes(500) if damaged else image.read_bytes()
        answer = ask(address, question(upload(address, content), session_hash=session))
        tally.answered += not damaged
        good = answer.startswith("This image cannot be read") if damaged else answer == "ship"
        return "" if good else f"answered {answer[:100]!r}"
    if what == 2:  # an upload that nobody asks about
        return "" if upload(address, rng.randbytes(rng.randrange(1, 50_000))) else "no upload"
    if what == 3:
        host = rng.choice(("evil.example", "x:1", "a" * 300))
        status, _ = send(address, "/", Host=host)
    elif what == 4:
        path = rng.choice(("/etc/passwd", "/dev/zero", str(image), "../x", "\0"))
        status, _ = send(address, ASK, question(path), **JSON)
    elif what == 5:
        body = question(upload(address, image.read_bytes()), session_hash=session)
        answer = ask(address, mutate_json(body, rng))
        if not answer.isdigit():  # it means something yet
            return "" if answer in ("ship", "nothing", "an example") else f"answered {answer!r}"
        status = int(answer)
    elif what == 6:
        origin = rng.choice(("http://evil.example", "null"))
        status, _ = send(address, "/gradio_api/run/predict", b"{}", Origin=origin)
    else:
        status, _ = send(address, f"/gradio_api/file={image}")
    tally.refused += 1
    return "" if 400 <= status < 500 else f"attack {what} got the status {status}"
