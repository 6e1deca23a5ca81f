"""What stands in front of the page: who may ask it, for what, and how long uploads stay.

The page trusts nobody: another page in the same browser could send requests to it, and a name that
somebody else owns could be made to point to this machine (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from halfmeg.errors import one_line
from halfmeg.files import parse_json

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_QUESTION_BYTES = 2**16
FORM_BYTES = 2**14
"""What a form adds to the file that it carries."""

UPLOAD = "/gradio_api/upload"
ASK = "/gradio_api/queue/join"
ANSWER = "/gradio_api/queue/data"

KEEP_ANSWERED_SECONDS = 2.0
"""The browser draws the upload that it has sent; then nobody needs it."""
KEEP_SECONDS = 60.0

log = logging.getLogger("halfmeg")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Upload(msgspec.Struct):
    """A file that the page's script says was uploaded."""

    path: str
    meta: dict[str, str]


class Question(msgspec.Struct):
    """What the page's own script asks: a function, and the one thing that it is given.

    Only what stands here is passed on, however much else was sent.
    """

    data: Annotated[list[Upload | int | None], Meta(min_length=1, max_length=1)]
    fn_index: int
    session_hash: Annotated[str, Meta(pattern=r"^\w{1,64}$")]


class Refused(Exception):
    """Why a request is not answered, and the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI middleware that lets through what this page's own script asks, and nothing else.

    Args:
        app: what it stands in front of.
        host: the address that the page is bound to.
        sweeper: of the folder where uploads lie; it waits while files are being written there.
        functions: returns by the number of each function of the page how many examples it chooses
            from, and 0 where it takes an upload.
    """

    def __init__(
        self, app: Any, host: str, sweeper: Sweeper, functions: Callable[[], Mapping[int, int]]
    ) -> None:
        self.app = app
        self.host = host
        self.sweeper = sweeper
        self.functions = functions

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a line."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            if scope["type"] != "http":
                raise Refused(403, "no WebSocket is served")
            headers = {key.decode("latin-1"): value.decode("latin-1")
                       for key, value in scope["headers"]}  # fmt: skip
            self.check_origin(headers)
            receive = await self.check_request(scope, headers, receive)
        except Refused as refused:
            # repr: what was sent must not write lines of its own
            log.warning("halfmeg: a request was refused: %s", str(refused))
            if scope["type"] == "http":
                await _answer(send, refused)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        writes = scope["path"].rstrip("/") in (UPLOAD, ASK, ANSWER)
        with self.sweeper.writing() if writes else contextlib.nullcontext():
            await _answer_whole(self.app, scope, receive, send)

    def check_origin(self, headers: dict[str, str]) -> None:
        """Raise where the request is for another machine, or from another page."""
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_own_name(name, self.host):
            raise Refused(403, f"Host {host[:80]!r} is not this page")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, f"Origin {origin[:80]!r} is not this page")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(
                403, "it comes from another page; type the address into the browser's address line"
            )

    async def check_request(
        self, scope: Message, headers: dict[str, str], receive: Receive
    ) -> Receive:
        """Raise where the page's script would not ask so; return what the app is to read from."""
        path = scope["path"]
        if scope["method"] in ("GET", "HEAD"):
            if "proxy=" in path:
                raise Refused(403, "nothing is fetched from elsewhere")
            return receive
        if scope["method"] != "POST" or path.rstrip("/") not in (UPLOAD, ASK):
            raise Refused(404, f"{scope['method'][:20]} {path[:80]!r} is not served")
        limit = MAX_UPLOAD_BYTES + FORM_BYTES if path.rstrip("/") == UPLOAD else MAX_QUESTION_BYTES
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "it does not state its length")
        if len(length) > 12 or int(length) > limit:
            raise Refused(413, "File size exceeds the maximum allowed size")
        if path.rstrip("/") == UPLOAD:
            if not headers.get("content-type", "").startswith("multipart/form-data"):
                raise Refused(400, "the upload is no form")
            return receive
        body = b""
        while len(body) < int(length):
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "it ended early")
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = self.check_question(body)
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    def check_question(self, body: bytes) -> bytes:
        """Return a question as it is passed on.

        Raises:
            Refused: it is none, gives a function what it does not take, or names a file that
                nobody uploaded.
        """
        try:
            question = parse_json(body, Question)
            (given,) = question.data
            examples = self.functions().get(question.fn_index)
            if examples is None:
                raise ValueError(f"there is no function {question.fn_index}")
            if isinstance(given, Upload):
                if examples or given.meta != {"_type": "gradio.FileData"}:
                    raise ValueError("the file is described otherwise than the page does")
                check_upload(given.path, self.sweeper.folder)
            elif given is not None and not 0 <= given < examples:
                raise ValueError(f"there is no example {given}")
        except ValueError as error:
            raise Refused(400, one_line(error, 200)) from None
        return msgspec.json.encode(question)


def is_own_name(name: str, bound: str) -> bool:
    """Whether a Host names this page: its address, or a name that nobody else can own."""
    name = name.lower().rstrip(".")
    try:
        local = ipaddress.ip_address(bound).is_loopback
    except ValueError:
        local = bound == "localhost"
    try:
        address = ipaddress.ip_address(name)
        return address.is_loopback or not local  # nobody can make an address point elsewhere
    except ValueError:
        pass
    if name in ("localhost", bound.lower()):
        return True
    own = {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    return not local and name in own


def check_upload(path: object, folder: Path) -> Path:
    """Return a path that is a regular file within the limit below the folder of uploads.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("no file was uploaded")
    try:
        resolved = Path(path).resolve(strict=True)
        facts = resolved.stat()
    except (OSError, RuntimeError):
        raise ValueError("the upload is not there any more; send it again") from None
    if not resolved.is_relative_to(folder.resolve()) or not stat.S_ISREG(facts.st_mode):
        raise ValueError("that file was not uploaded")
    if facts.st_size > MAX_UPLOAD_BYTES:
        raise ValueError(f"the upload is larger than {MAX_UPLOAD_BYTES:,} bytes")
    return resolved


async def _answer_whole(app: Any, scope: Message, receive: Receive, send: Send) -> None:
    """Have an app answer; what it raises becomes one line, where a server would print a page.

    As where a browser goes on with a page of yesterday, whose session nobody knows any more.
    """
    begun = ended = False

    async def watched(message: Message) -> None:
        nonlocal begun, ended
        begun = True
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    try:
        await app(scope, receive, watched)
    except Exception as error:  # what the page's library raises is not told
        told = one_line(error.__cause__ or error, 200)
        log.warning("halfmeg: a request was not answered: %s", told)
        if not begun:
            await _answer(send, Refused(500, "it cannot be answered"))
        elif not ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, refused: Refused) -> None:
    body = str(refused).encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Sweeper:
    """Deletes uploads once they are answered, and everything else after a minute.

    gradio makes a folder for each file, and then the file. An empty folder is therefore deleted
    only while nothing is being written.

    Args:
        folder: where they lie; what is in it when the sweeping starts stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: set[Path] = set()
        self.seen: dict[tuple[Path, int, int], float] = {}
        self.answered: dict[Path, float] = {}
        self.writers = 0
        self.lock = threading.Lock()  # of what threads that answer note while another sweeps
        self.stopped = threading.Event()

    def start(self) -> None:
        """Keep what is there now, and sweep every second from now on."""
        self.kept = set(self.folder.rglob("*"))
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """End the sweeping."""
        self.stopped.set()

    def note_answered(self, path: Path) -> None:
        """Have an upload deleted soon."""
        with self.lock:
            self.answered[path] = time.monotonic()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Have folders stay meanwhile."""
        with self.lock:
            self.writers += 1
        try:
            yield
        finally:
            with self.lock:
                self.writers -= 1

    def _run(self) -> None:
        while not self.stopped.wait(1):
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Delete what has had its time; the clock is one that never jumps."""
        found: dict[tuple[Path, int, int], float] = {}
        with self.lock:
            noted = dict(self.answered)
        kept = {self.folder, *self.kept}
        for folder, _, names in os.walk(self.folder, topdown=False):
            for path in (Path(folder, name) for name in names):
                try:
                    facts = path.lstat()
                except OSError:
                    continue
                key = (path, facts.st_ino, facts.st_ctime_ns)
                since = found[key] = self.seen.get(key, now)
                answered = noted.get(path)
                done = answered is not None and since <= answered < now - KEEP_ANSWERED_SECONDS
                if path not in kept and (done or since < now - KEEP_SECONDS):
                    with contextlib.suppress(OSError):  # it is tried again in a second
                        path.unlink()
            with self.lock:
                if not self.writers and Path(folder) not in kept:
                    with contextlib.suppress(OSError):  # it is not empty
                        os.rmdir(folder)
        self.seen = found
        gone = [path for path in noted if not path.exists()]
        with self.lock:
            for path in gone:
                if self.answered.get(path) == noted[path]:
                    del self.answered[path]
