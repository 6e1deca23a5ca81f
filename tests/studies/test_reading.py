"""How studies and runs that are reported together are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from halfmeg.files import write_json
from halfmeg.studies.power import LOOK_LEVEL, LOOKS
from halfmeg.studies.reading import MARGIN, Reading, record_look
from halfmeg.studies.stats import LEVEL


def study(folder: Path, reading: Reading) -> Path:
    (folder / "cnn-seed-0").mkdir(parents=True)
    write_json(folder / "cnn-seed-0" / "config.json", {})
    write_json(folder / "study.json", {"runs": [], "reading": reading.to_dict()})
    return folder


def test_the_runs_of_a_study_are_read_at_its_level(tmp_path: Path) -> None:
    """Naming them one by one is no way around the level of its looks."""
    folder = study(tmp_path / "a", Reading.until_decided(0.01).with_look(5))
    alone = Reading.of_all([folder / "cnn-seed-0"])
    assert alone == Reading.of_all([folder])
    assert (alone.level, alone.planned, alone.looks) == (LOOK_LEVEL, LOOKS, (5,))
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", {})
    assert Reading.of_all([tmp_path / "run"]) == Reading()


def test_a_study_that_was_begun_but_never_read_within_a_margin(tmp_path: Path) -> None:
    """The reading that is wanted stands there before the first run; what was read, after it."""
    read = Reading(0.01).with_look(3)
    begun = study(tmp_path / "a", read.go_on(Reading(0.03), tmp_path))
    again = Reading.of(begun).go_on(Reading(0.01), begun)
    assert (again.margin, again.margins, again.other_margins) == (0.01, (0.01,), ())
    record_look(begun, 3, 0.02)
    assert Reading.of(begun).margins == (0.01, 0.02)
    stored = Reading(0.03).with_look(3).to_dict()
    del stored["margins"]  # an earlier version's
    write_json(begun / "study.json", {"runs": [], "reading": stored})
    assert Reading.of(begun).margins == (0.03,)


def test_studies_together_have_the_looks_of_all(tmp_path: Path) -> None:
    """Whichever is named first; a plan of one does not count the looks of another."""
    plain, read = (
        study(tmp_path / name, reading)
        for name, reading in (("b", Reading()), ("c", Reading().with_look(2).with_look(3)))
    )
    for folders in ([plain, read], [read, plain]):
        found = Reading.of_all(folders)
        assert found.level == LEVEL
        assert found.unplanned_looks(5) == (2, 3)
    planned = study(tmp_path / "d", Reading.until_decided(0.02).with_look(5))
    both = Reading.of_all([read, planned])
    assert (both.level, both.margin) == (LOOK_LEVEL, MARGIN)
    assert both.unplanned_looks(8) == (2, 3, 5)


def test_studies_together_were_not_read_before_they_ended(tmp_path: Path) -> None:
    """Each was looked at once, with all of its seeds; one that seeds were added to, before."""
    folders = []
    for name, begun, margin in (("three", 3, 0.005), ("five", 5, 0.01), ("grown", 5, 0.01)):
        looks = Reading(margin).with_look(3 if name == "grown" else begun)
        folder = study(tmp_path / name, looks)
        runs = [
            {"folder": f"cnn-seed-{seed}", "model": "cnn", "recipe": "common", "seed": seed}
            for seed in range(begun)
        ]
        write_json(folder / "study.json", {"runs": runs, "reading": looks.to_dict()})
        folders.append(folder)
    three, five, grown = folders
    assert Reading.of_all([three, five]) == Reading.of_all([five, three])
    assert Reading.of_all([five, three]).margin == 0.005
    assert Reading.of_all([three, five]).other_margins == (0.01,)
    assert Reading.of_all([five, grown]).other_margins == ()
    assert replace(Reading.of_all([five, grown]), margin=0.02).other_margins == (0.01,)
    assert Reading.of_all([three, five]).unplanned_looks(5) == ()
    assert Reading.of_all([five, grown]).unplanned_looks(5) == (3,)
