"""What a row of `TARGETS` says, and what has to know of it elsewhere."""

from __future__ import annotations

import pytest
from conftest import ROOT, Cli

from halfmeg.artifacts.bundle import FILES, TARGET_FILE
from halfmeg.shipping import program
from halfmeg.shipping.targets import TARGETS

CARD = (ROOT / "halfmeg" / "shipping" / "templates" / "card.md").read_text()
SHIP = (ROOT / "docs" / "ship.md").read_text()


def test_a_target_says_what_was_made_and_proved() -> None:
    stated = {"arena_bytes": 36_224, "peak": "conv1", "constant_bytes": 83_536, "proof_text": "it"}
    made = "36,224 bytes of RAM, set by conv1; 83,536 of flash without code"
    assert TARGETS["c"].lines(stated) == [made, "it"]
    assert TARGETS["litert"].lines({"proof_text": "it"}) == ["it"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_bundle_takes_its_files_and_the_card_names_them(name: str) -> None:
    path = TARGETS[name].path
    assert path in FILES or TARGET_FILE.fullmatch(path) or TARGET_FILE.fullmatch(f"{path}x")
    assert f'{{% if "{name}" in facts %}}' in CARD
    assert f"`{path}`" in CARD


@pytest.mark.parametrize(
    ("target", "package", "remedy"),
    [
        ("litert", "litert_torch",
         "in an environment of its own, pip install -c constraints-litert.txt -e '.[ship,litert]'"),
        ("executorch", "executorch", "not installed: pip install -e '.[executorch]'"),
    ],
)  # fmt: skip
def test_without_the_converter_a_line_says_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, target: str, package: str, remedy: str
) -> None:
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    outcome = cli("export", "record", "--target", target, "--data", "digits", "--out", "b")
    assert outcome.code == 2
    assert "-c" not in remedy or remedy[remedy.index("pip") :] in SHIP
    assert outcome.is_one_line(f"--target {target} needs {package}", remedy)
