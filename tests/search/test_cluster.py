"""Two nodes of a simulated cluster: trials land on both, and outlive one of them."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.search.test_search import SCRIPT, flags, rows, wait_for


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_trials_of_a_dead_node_go_on_elsewhere(
    tiny_cache: Path, domains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        budget = ("--steps", 240, "--report-every", 24, "--scheduler", "none", "--address", cluster.address)
        log = tmp_path / "log"
        with open(log, "wb") as file:
            command = [*SCRIPT, *flags(tiny_cache, domains, tmp_path, *budget)]
            process = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, cwd=tmp_path)
            try:
                for trial in (1, 2):
                    wait_for(process, log, f"trial {trial} step 24/")
                cluster.remove_node(nodes[1], allow_graceful=False)
                assert process.wait(500) == 0, log.read_text()
            finally:
                process.kill()
    finally:
        cluster.shutdown()
    assert {row["node"] for row in rows(tmp_path)} == {node.node_id[:8] for node in nodes}
    ends = {row["trial"]: row for row in rows(tmp_path) if row["step"] == 240}
    assert len(ends) == 3 and {row["status"] for row in ends.values()} == {"done"}
    assert "was lost" in log.read_text()
    logs = "".join(path.read_text() for path in (tmp_path / "out/trials").glob("*/log-0.txt"))
    assert "going on from step" in logs
