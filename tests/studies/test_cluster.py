"""Studies on a real Ray cluster: several node processes on this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from test_study import configs, weights

from halfmeg.studies.study import run_study
from halfmeg.studies.workers import StudyListener

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def test_an_address_that_does_not_answer(tmp_path: Path, few_digits) -> None:
    with pytest.raises(ValueError, match=r"no Ray cluster answers at '127.0.0.1:1'"):
        run_study(configs(1), few_digits, tmp_path / "study", cluster="127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_a_node_killed_in_the_middle_costs_a_repeat_only(tmp_path: Path, few_digits) -> None:
    from ray.cluster_utils import Cluster

    own_handler = signal.getsignal(signal.SIGTERM)
    study = configs(3, threads=1)
    run_study(study, few_digits, tmp_path / "local")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killed = threading.Event()

        class KillOnFirst(StudyListener):
            def on_run(self, config, error, done, total) -> None:
                if not killed.is_set():
                    killed.set()
                    for process in doomed.all_processes["raylet"]:
                        os.kill(process.process.pid, signal.SIGKILL)

        heard: list[str] = []

        class Hear(KillOnFirst):
            def on_run(self, config, error, done, total) -> None:
                super().on_run(config, error, done, total)
                heard.append(f"{config.model}-seed-{config.seed}")

        before = signal.getsignal(signal.SIGTERM)  # the cluster's, which this process starts
        started = time.monotonic()
        result = run_study(
            study, few_digits, tmp_path / "far", cluster=cluster.address, listener=Hear()
        )
        assert time.monotonic() - started < 300
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, own_handler)
    assert killed.is_set()
    assert not result.failures
    assert sorted(heard) == sorted({run.folder.name for run in result.runs})
    assert len(result.runs) == 6
    assert weights(tmp_path / "far") == weights(tmp_path / "local")
    assert not list((tmp_path / "far").glob(".*.partial"))
    again = run_study(study, few_digits, tmp_path / "far")
    assert len(again.runs) == 6
