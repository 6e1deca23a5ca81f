"""A short sample of the mutated picture files, and what the campaign makes of a fault in them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from picture_files import Batch, Done, culprits, damaged, file_name, judge, run_files, try_files
from pictures import VARIANTS, picture

from halfmeg.data.decode import decode_image


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_mutated_file_is_read_or_refused(kind: str) -> None:
    for number in range(100, 104):
        try:
            assert decode_image(damaged(kind, number), 32)[0].shape == (3, 32, 32)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.slow
def test_a_sample_of_mutated_files_of_every_format() -> None:
    """What `campaign.py --files 120000` does with more of them (docs/reliability.md)."""
    files = {file_name(kind, i): damaged(kind, i) for kind in VARIANTS for i in range(100, 104)}
    found = try_files(files)
    assert found.faults == {}
    assert 0 < len(found.refused) < len(files)
    assert found.peak_bytes < 10**9


LOGGED = 3716, 5249
"""Numbers of TIFF files whose samples per pixel Pillow's logger told on the screen."""


@pytest.mark.parametrize("number", LOGGED)
def test_no_line_of_a_decoders_logger_reaches_the_screen(number: int, tmp_path: Path) -> None:
    (tmp_path / "image.tif").write_bytes(damaged(".tif", number))
    code = (
        "from pathlib import Path; from halfmeg.data.decode import decode_image\n"
        "try: decode_image(Path('image.tif').read_bytes(), 32)\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "identify" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_no_line_of_any_librarys_logger_reaches_the_screen(tmp_path: Path) -> None:
    """But the program's own does, once."""
    code = (
        "import sys, logging; from halfmeg.cli.main import main\n"
        "sys.argv = ['halfmeg', 'data', 'check', 'nowhere']\n"
        "for _ in range(2):\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "logging.error('the root'); logging.getLogger('any.library').error('library')\n"
        "logging.getLogger('halfmeg').warning('halfmeg: ours')"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    one, other, own = done.stderr.splitlines()
    assert one == other
    assert one.startswith("halfmeg: ")
    assert own == "halfmeg: ours"


@pytest.mark.slow
def test_many_mutated_files() -> None:
    tally = run_files(".tif", 10**6, 300)
    assert tally.told == []
    assert tally.refused + tally.read == tally.cases == 300


@pytest.mark.parametrize("ending", VARIANTS)
def test_the_same_damage_for_a_number(ending: str) -> None:
    several = [damaged(ending, number) for number in range(20)]
    assert several == [damaged(ending, number) for number in range(20)]
    originals = [picture(ending, i, 0) for i in range(len(VARIANTS[ending]))]
    assert len({*several, *originals}) > 15


@pytest.mark.slow
def test_a_decoder_that_ends_the_process_is_found(tmp_path: Path, monkeypatch) -> None:
    """Of a batch, the file whose content did it is named."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, PIL.Image\n"
        "opened = PIL.Image.open\n"
        "def guarded(file, *rest, **options):\n"
        "    os.abort() if b'end-it' in file.getvalue() else None\n"
        "    return opened(file, *rest, **options)\n"
        "PIL.Image.open = guarded\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = {name: picture(".png", 0, i) for i, name in enumerate(("a.png", "b.png"))}
    files["b.png"] += b"end-it"
    assert culprits(files, try_files, try_files(files)) == {"b.png": {"crashes": "SIGABRT"}}


def test_a_fault_is_found_by_halves() -> None:
    tried = []

    def attempt(files: dict[str, bytes]) -> Batch:
        tried.append(len(files))
        bad = [name for name, content in files.items() if content == b"bad"]
        return Batch({"hangs": "late"} if bad else {})

    files = {str(i): b"bad" if i in (3, 70) else b"" for i in range(100)}
    assert culprits(files, attempt, attempt(files)) == {i: {"hangs": "late"} for i in ("3", "70")}
    assert len(tried) < 35
    together = Batch({"over_memory": "1,200 MB"})
    assert culprits(files, lambda _: Batch(), together) == {
        "0": {"over_memory": "100 together: 1,200 MB"}
    }


@pytest.mark.parametrize(
    ("done", "what"),
    [
        (Done(None, "", "", 0), "hangs"),
        (Done(-signal.SIGSEGV, "", "", 0), "crashes"),
        (Done(1, "", "Traceback (most recent call last):\n  x\nKeyError: 1\n", 0), "tracebacks"),
        (Done(0, "", "", 10**9 + 1), "over_memory"),
        (Done(2, "", "halfmeg: no\n", 0), "silent"),
        (Done(0, "", "TIFFReadDirectory: Warning\n", 0), "silent"),
    ],
)
def test_how_a_command_may_not_end(done: Done, what: str) -> None:
    assert [*done.faults()] == [what]


def test_files_that_one_command_leaves_out_are_found(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "b: c.png"):
        (tmp_path / "cat" / name).touch()
    report = {
        "files": 2, "train": 1, "validation": 0, "test": 0, "passed_over": [],
        "problems": ["unreadable: cat/b: c.png: empty"],
    }  # fmt: skip
    a, b = (str(tmp_path / "cat" / name) for name in ("a.png", "b: c.png"))
    answers = [{"path": a, "label": "x"}, {"path": b, "error": "empty"}]
    for change, fault in (
        ({}, ""),
        ({"files": 1}, "leaves files out"),
        ({"train": 2}, "counts otherwise"),
        ({"problems": []}, "one reads what the other refuses"),
    ):
        batch = Batch()
        judge(batch, tmp_path, set(), json.loads(json.dumps(report | change)), answers)
        assert fault in batch.faults.get("silent", "")
        assert bool(batch.faults) is bool(fault)
    batch = Batch()
    judge(batch, tmp_path, {Path(b)}, report, answers[:1] + answers[1:])
    assert "a sound picture is refused" in batch.faults["silent"]
