"""`hf:OWNER/NAME` against a local stand-in for the hub's HTTP interface, honest and hostile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli, Outcome, first_digits
from PIL import Image

FIRST, SECOND = "1" * 40, "2" * 40
BOTH = {"main": FIRST, "refs/convert/parquet": SECOND}


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    address: str = ""
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    listing: Callable[[dict[str, Any]], Any] = lambda found: found  # what a hostile one changes
    content: Callable[[bytes], bytes] = lambda content: content
    endless: bool = False
    status: int = 200
    slow: dict[str, bytes] = field(default_factory=dict)  # what comes first, by a part of the path
    over: threading.Event = field(default_factory=threading.Event)
    sends_on: bool = False


def table(count: int, first: int = 0) -> bytes:
    data = first_digits(200).train
    rows = []
    for pixels in data.images[first : first + count]:
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    labels = data.labels[first : first + count].tolist()
    out = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": labels}), out)
    return out.getvalue()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        if not self.hub.endless:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)
            while self.hub.endless:
                self.wfile.write(bytes(2**16))

    def drip(self, first: bytes) -> None:
        """Send a byte now and then, as long as the test lasts."""
        with contextlib.suppress(OSError):
            self.wfile.write(first)
            while not self.hub.over.wait(0.02):
                self.wfile.write(b"1")

    def send_on(self, target: str) -> None:
        """Send a redirect whose body has no end."""
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.hub.over.is_set():
                self.wfile.write(bytes(2**16))

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.asked.append(path)
        if first := next((first for word, first in hub.slow.items() if word in path), None):
            self.drip(first)
        elif hub.sends_on and "/loop" in path:
            self.send_on("/loop")
        elif hub.sends_on and "?sent-on" not in self.path:
            self.send_on(f"{self.path.partition('?')[0]}?sent-on")
        elif hub.status != 200:
            self.send(b"{}", hub.status)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
            files = hub.files.get((match[1], match[2]))
            if files is None:
                self.send(b"{}", 404)
                return
            siblings = [
                {"rfilename": name, "size": len(content), "blobId": "0" * 40,
                 "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}}
                for name, content in files.items()
            ]  # fmt: skip
            found = {"id": match[1], "sha": BOTH[match[2]], "siblings": siblings}
            self.send(json.dumps(hub.listing(found)).encode())
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            (revision,) = (name for name, commit in BOTH.items() if commit == match[2])
            content = hub.files[match[1], revision].get(match[3])
            self.send(b"", 404) if content is None else self.send(hub.content(content))
        else:
            self.send(b"{}", 500)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    hub.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def load(
    hub: Hub, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    return lambda source: cli("data", "check", source, "--json")


def left_in(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache"
    return [p.name for p in folder.iterdir() if "hub-" in p.name] if folder.exists() else []


def test_a_data_set_of_the_hub_is_downloaded_once(
    hub: Hub, load: Callable[..., Outcome], cli: Cli, tmp_path: Path
) -> None:
    hub.files["me/digits", "main"] = {
        "data/train-00000-of-00002.parquet": table(60),
        "data/train-00001-of-00002.parquet": table(60, 60),
        "data/test-00000-of-00001.parquet": table(40, 120),
        "README.md": b"# digits",
    }
    found = load("hf:me/digits")
    assert found.json["train"] == 120, found.err
    assert found.json["test"] == 40
    assert found.json["name"] == "digits"
    assert found.json["notes"] == ["hf:me/digits: commit 111111111111"]
    assert sum("resolve" in path for path in hub.asked) == 3
    assert not any(path.endswith("README.md") for path in hub.asked)
    again = load("hf:me/digits")
    assert again.json == found.json
    assert sum("resolve" in path for path in hub.asked) == 3, "nothing is downloaded twice"
    hub.status = 503
    offline = load("hf:me/digits")
    assert offline.json["fingerprint"] == found.json["fingerprint"]
    assert "the hub did not answer; the copy of commit 111111111111" in offline.json["notes"][0]
    cached = cli("data", "cache", "--json").json
    assert "downloaded from the hub" in [entry["name"] for entry in cached["entries"]]
    cli("data", "cache", "--clear")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("damaged", ["*.parquet", "test.parquet", "hub.json"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_copy_that_is_not_whole_is_downloaded_again(
    hub: Hub, load: Callable[..., Outcome], tmp_path: Path, damaged: str, is_gone: bool
) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(60), "test.parquet": table(20, 60)}
    found = load("hf:me/digits")
    (copy,) = (tmp_path / "cache").glob("hub-*")
    for path in copy.glob(damaged):
        path.unlink()
        if not is_gone:
            path.write_bytes(b"cut")
    for _ in range(2):
        again = load("hf:me/digits")
        assert again.json == found.json, again.err
    assert sum("resolve" in path for path in hub.asked) == 4, "and is kept from then on"


def test_a_copy_that_cannot_be_removed_is_named(
    hub: Hub, load: Callable[..., Outcome], tmp_path: Path
) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(60), "test.parquet": table(20, 60)}
    load("hf:me/digits")
    (copy,) = (tmp_path / "cache").glob("hub-*")
    shutil.rmtree(copy)
    copy.write_text("no folder")
    found = load("hf:me/digits")
    assert found.is_one_line("hf:me/digits: ", copy.name, "is damaged; remove it"), found.err


def test_one_of_several_tables_and_the_hubs_own_copy(
    hub: Hub, load: Callable[..., Outcome]
) -> None:
    hub.files["me/two", "main"] = {
        "small/train.parquet": table(60), "small/test.parquet": table(20, 60),
        "large/train.parquet": table(80), "large/test.parquet": table(20, 80),
    }  # fmt: skip
    several = load("hf:me/two")
    assert several.code == 2
    assert several.is_one_line("there are several tables: large, small; write hf:OWNER/NAME/TABLE")
    assert not any("resolve" in path for path in hub.asked)
    assert load("hf:me/two/small").json["train"] == 60
    hub.files["me/photos", "main"] = {"cat/1.jpg": b"x"}
    hub.files["me/photos", "refs/convert/parquet"] = {
        "default/train/0000.parquet": table(50), "default/test/0000.parquet": table(20, 50),
    }  # fmt: skip
    found = load("hf:me/photos")
    assert found.json["train"] == 50
    hub.status = 503
    offline = load("hf:me/photos")
    assert offline.json["fingerprint"] == found.json["fingerprint"], offline.err
    assert "the hub did not answer; the copy of commit 222222222222" in offline.json["notes"][0]
    named = load("hf:me/photos@main")
    assert named.is_one_line("hf:me/photos@main cannot be read: Server error '503"), named.err


def test_the_hubs_own_offline_mode_takes_the_copy(
    hub: Hub, load: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(60), "test.parquet": table(20, 60)}
    found = load("hf:me/digits")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = load("hf:me/digits")
    assert offline.json["fingerprint"] == found.json["fingerprint"], offline.err
    assert "the hub did not answer; the copy of commit 111111111111" in offline.json["notes"][0]
    other = load("hf:me/others")
    assert other.is_one_line("hf:me/others cannot be read: ", "offline mode is enabled"), other.err


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("data/{}-00000-of-00001.parquet", "data/extra-0000{}-of-00002.parquet"),
            "2 tables of no part are left out, as data/extra-00000-of-00002.parquet",
        ),
        (
            ("default/{}/0000.parquet", "default/extra/000{}.parquet"),
            "2 tables of no part are left out, as default/extra/0000.parquet",
        ),
    ],
)
def test_splits_beyond_the_parts_are_named(
    hub: Hub, load: Callable[..., Outcome], names: tuple[str, str], told: str
) -> None:
    """As SVHN's `extra`: of the files, of what lies in the cache, and without an answer."""
    part, extra = names
    hub.files["me/numbers", "main"] = {
        part.format("train"): table(50), part.format("test"): table(20, 50),
        extra.format(0): table(30, 70), extra.format(1): table(30, 100),
    }  # fmt: skip
    found = [load("hf:me/numbers").json["notes"] for _ in range(2)]
    assert found == [[f"hf:me/numbers: commit 111111111111; {told}"]] * 2
    assert not any("resolve" in path and "extra" in path for path in hub.asked)
    hub.status = 503
    (offline,) = load("hf:me/numbers").json["notes"]
    assert offline.endswith(f"the copy of commit 111111111111 is used; {told}")


def test_a_copy_of_before_left_out_tables_were_kept_is_read(
    hub: Hub, load: Callable[..., Outcome], tmp_path: Path
) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(60), "test.parquet": table(20, 60)}
    found = load("hf:me/digits")
    (described,) = (tmp_path / "cache").glob("hub-*/hub.json")
    content = json.loads(described.read_text())
    assert content.pop("left_out") == []
    described.write_text(json.dumps(content))
    assert load("hf:me/digits").json == found.json
    assert sum("resolve" in path for path in hub.asked) == 2


def test_mistakes(hub: Hub, load: Callable[..., Outcome]) -> None:
    hub.files["me/notes", "main"] = {"notes.txt": b"x"}
    for source, told in (
        ("hf:me/nothing", "hf:me/nothing cannot be read: it does not exist"),
        ("hf:me", "hf:me names no data set; write hf:OWNER/NAME"),
        ("hf:me/../x", "names no data set"),
        ("hf:me/notes", "hf:me/notes has no Parquet files"),
    ):
        found = load(source)
        assert found.code == 2
        assert found.is_one_line(told), found.err


def test_without_an_answer_and_without_a_copy(hub: Hub, load: Callable[..., Outcome]) -> None:
    hub.status = 503
    found = load("hf:me/digits")
    assert found.is_one_line("hf:me/digits cannot be read: Server error '503"), found.err


def altered(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def change(found: dict[str, Any]) -> Any:
        for sibling in found["siblings"]:
            sibling.update(changes)
        return found

    return change


@pytest.mark.parametrize(
    ("listing", "told"),
    [
        (lambda found: found | {"sha": "../../x"}, "names '../../x' as a commit"),
        (altered(rfilename="../../evil.parquet"), "file name '../../evil.parquet' is not allowed"),
        (altered(rfilename="/etc/evil.parquet"), "file name '/etc/evil.parquet' is not allowed"),
        (altered(rfilename=".x/evil.parquet"), "file name '.x/evil.parquet' is not allowed"),
        (altered(size=10**13), "bytes; allowed: 8,589,934,592"),
        (altered(size=None), "the server states no size of train.parquet"),
        (altered(size=-1), "Expected `int` >= 0"),
        (altered(size=10), "train.parquet is larger than 10 bytes"),
        (altered(size=10**6), "bytes, where 1,000,000 were stated"),
        (altered(lfs={"sha256": "0" * 64}), "train.parquet is damaged: its checksum is another"),
        (lambda found: [found] * 3, "Expected `object`, got `array`"),
        (lambda found: {"sha": FIRST, "siblings": 5}, "Expected `array`, got `int`"),
    ],
)
def test_a_hostile_listing_is_one_line(
    hub: Hub, load: Callable[..., Outcome], tmp_path: Path, listing: Any, told: str
) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(30)}
    hub.listing = listing
    found = load("hf:me/digits")
    assert found.code == 2
    assert found.is_one_line("hf:me/digits cannot be read: ", told), found.err
    assert left_in(tmp_path) == []
    assert not list(tmp_path.rglob("evil*"))


def test_an_endless_answer_ends(hub: Hub, load: Callable[..., Outcome], tmp_path: Path) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(30)}
    hub.endless = True
    found = load("hf:me/digits")
    assert found.is_one_line("is larger than 8,388,608 bytes"), found.err
    assert left_in(tmp_path) == []


ANSWER = b"HTTP/1.1 200 OK\r\n"
SLOW = {
    "headers": ANSWER + b"X-Header: ",
    "a body": ANSWER + b"\r\n",
    "the length of a chunk": ANSWER + b"Transfer-Encoding: chunked\r\n\r\n1;",
}


# Before a file the listing comes, in less than the patience of that case.
@pytest.mark.parametrize(
    ("path", "part", "patience"),
    [
        *(("/api/", part, 0.5) for part in SLOW),
        pytest.param("/resolve/", "a body", 4.0, marks=pytest.mark.slow),
    ],
)
def test_a_hub_that_hardly_sends_is_given_up(
    hub: Hub, load: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    path: str, part: str, patience: float,
) -> None:  # fmt: skip
    """Each of its bytes comes soon enough for a socket."""
    monkeypatch.setattr("halfmeg.data.pace.PATIENCE_SECONDS", patience)
    hub.files["me/digits", "main"] = {"train.parquet": table(30)}
    hub.slow = {path: SLOW[part]}
    found = load("hf:me/digits")
    assert found.code == 2
    assert found.is_one_line(
        f"hf:me/digits cannot be read: {hub.address}", path,
        "it sends less than 10,000 bytes a second; try again later, or name another hub in",
    ), found.err  # fmt: skip
    assert left_in(tmp_path) == []


def test_the_body_of_a_redirect_is_not_read(hub: Hub, load: Callable[..., Outcome]) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": table(60), "test.parquet": table(20, 60)}
    hub.sends_on = True
    found = load("hf:me/digits")
    assert found.json["train"] == 60, found.err
    assert sum("resolve" in path for path in hub.asked) == 4
    hub.files["me/loop", "main"] = hub.files["me/digits", "main"]
    found = load("hf:me/loop")
    assert found.is_one_line("hf:me/loop cannot be read: it sends on more than 10 times"), found.err


def test_what_is_no_table_is_one_line(hub: Hub, load: Callable[..., Outcome]) -> None:
    hub.files["me/digits", "main"] = {"train.parquet": b"PAR1" + bytes(500)}
    found = load("hf:me/digits")
    assert found.code == 2
    assert found.is_one_line("train.parquet cannot be read as Parquet of images"), found.err
