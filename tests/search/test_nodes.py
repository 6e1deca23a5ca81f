"""Trials on a real Ray cluster: several node processes on this machine."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from test_search import TINY

from halfmeg.artifacts.run import Run
from halfmeg.search.budget import Limits
from halfmeg.search.finish import finish
from halfmeg.search.journal import Journal, read_trials
from halfmeg.search.lanes import Lanes, SearchListener
from halfmeg.search.record import Clock, Trial, with_repeats
from halfmeg.search.run import describe_search, open_search, start
from halfmeg.search.state import Search
from halfmeg.studies.cluster import Cluster
from halfmeg.studies.pool import KILLED

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def test_what_a_cluster_excludes_is_told(tmp_path: Path, monkeypatch, few_digits) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    limits = Limits(params=700)
    described = describe_search(few_digits, limits=limits, seconds=5, place="tiny.py:SPACE")
    with pytest.raises(ValueError, match="leave it out with --cluster"):
        start(tmp_path / "out", few_digits, *described, workers=2, cluster="127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        start(tmp_path / "out", few_digits, *described, cluster="127.0.0.1:1")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("default")  # of Ray itself
def test_a_trial_that_a_node_lost_does_not_count_as_failed(tmp_path: Path, few_digits) -> None:
    ray = pytest.importorskip("ray")
    raised = ray.exceptions
    cluster = Cluster("auto", few_digits)
    cluster.ray = ray
    lanes = Lanes(few_digits, 1, None, lambda _: [], Clock(tmp_path), SearchListener(), print)
    first = Trial(0, {}, "done", reached={2: 0.9})
    for error, told, repeated in (
        (raised.OutOfMemoryError("low on memory"), f"{KILLED}: low on memory", ()),
        (raised.WorkerCrashedError(), f"{KILLED}: The worker died unexpectedly", ()),
        (raised.RayTaskError("train", "KeyError: 1", KeyError(1)), "KeyError: 1", (0.0,)),
    ):
        lost = Future[Any]()
        lost.set_exception(error)
        reached = lanes._take_in(cluster, lost, Trial(1, {}, "running"))
        assert (reached.error or "").startswith(told)
        again = Trial(1, {}, "failed", error=reached.error or "", repeats=0)
        assert with_repeats([first, again])[0].repeated == repeated


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_nodes_train_the_last_comparison(tmp_path: Path, monkeypatch, few_digits) -> None:
    from ray.cluster_utils import Cluster

    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    stored, space = describe_search(
        few_digits, limits=Limits(params=700), seconds=5, place="tiny.py:SPACE", compare=False
    )
    start(tmp_path / "out", few_digits, stored, space)
    stored, space = open_search(tmp_path / "out", few_digits)
    assert stored.final is not None
    final = replace(
        stored.final, folder="nodes", seeds=1, baselines=(("logistic", 500_000),), no_verdict=""
    )
    own_handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        search = Search(
            tmp_path / "out", stored, space, few_digits,
            Journal(tmp_path / "out", stored.seed, stored.strategy), Clock(tmp_path / "out"),
            SearchListener(), 2, cluster.address,
        )  # fmt: skip
        outcome = finish(search, final)
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, own_handler)
    assert outcome.comparison is not None
    assert not outcome.failures
    assert {len(model.runs) for model in outcome.comparison.models} == {1}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_a_lost_node_costs_a_search_nothing(tmp_path: Path, monkeypatch, few_digits) -> None:
    from ray.cluster_utils import Cluster

    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    own_handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        class KillOnFirst(SearchListener):
            killed = 0.0

            def on_trial(self, trial: Trial) -> None:
                if not self.killed:
                    self.killed = time.monotonic()
                    for process in doomed.all_processes["raylet"]:
                        os.kill(process.process.pid, signal.SIGKILL)

        listener = KillOnFirst()
        stored, space = describe_search(
            few_digits, limits=Limits(params=700), seconds=60, place="tiny.py:SPACE", compare=False
        )
        outcome = start(
            tmp_path / "out", few_digits, stored, space, cluster=cluster.address,
            listener=lambda search: listener,
        )  # fmt: skip
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, own_handler)
    assert listener.killed
    trials = read_trials(tmp_path / "out")
    assert not [trial.error for trial in trials if trial.outcome == "failed"]
    done = [trial for trial in trials if trial.outcome == "done"]
    assert done
    for trial in done:
        folds = (tmp_path / "out" / "trials").glob(f"{trial.number:04}*")
        tables = [Run.open(fold).read_metrics() for fold in folds]
        assert len(tables) == stored.folds
        for rows in tables:
            assert [row["epoch"] for row in rows] == list(range(1, trial.epochs + 1))
        accuracy = mean(rows[-1]["val_accuracy"] or 0.0 for rows in tables)
        assert trial.reached[trial.epochs] == pytest.approx(accuracy)
    compared = [trial for trial in done if trial.repeated] or done
    assert outcome.winner.accuracy == max(trial.accuracy or 0.0 for trial in compared)
    assert not list((tmp_path / "out" / "trials").glob(".*.partial"))
