"""The cluster campaign: clean on clusters that keep their word, and not on one that loses what it acknowledged."""

import time
from pathlib import Path

import pytest

from occamdb.stress.campaigns.cluster import cluster_campaign
from occamdb.stress.campaigns.cluster_faults import Fault, Stage, kill_primary, lose_replies, stop_primary
from occamdb.stress.clusters import Cluster, PostgresCluster

pytestmark = pytest.mark.usefixtures("clustered")
SECONDS = 12.0


def some_faults(cluster: Cluster) -> dict[Fault, int]:
    return {kill_primary: 3, stop_primary: 1, lose_replies: 1}


@pytest.mark.parametrize("workload", ["list-append", "counter"])
@pytest.mark.parametrize("servers", ["postgres", "etcd"])
def test_a_short_campaign_is_clean(servers: str, workload: str, tmp_path: Path) -> None:
    verdict = cluster_campaign(
        servers, SECONDS / 60, tmp_path, workers=2, workloads=[workload], faults=some_faults
    )
    assert verdict.valid, verdict.text()
    assert verdict.acknowledged > 0 and sum(verdict.faults.values()) > 0
    assert verdict.unknown == verdict.lost == verdict.anomalies == 0
    assert "CLEAN" in verdict.text().splitlines()
    assert list(tmp_path.iterdir()) == []


def asynchronous(engine: str) -> Cluster:
    return PostgresCluster(standbys=1, synchronous=False)


def lose_acknowledged_commits(stage: Stage) -> None:
    """A standby that has not heard of the newest commits becomes the primary."""
    cluster = stage.cluster
    assert isinstance(cluster, PostgresCluster)
    old, (behind,) = cluster.primary, cluster.standbys
    cluster.kill(behind)
    time.sleep(1.0)  # what is acknowledged meanwhile is on the primary alone
    cluster.promote(behind)
    cluster.rejoin(old)


@pytest.mark.parametrize("workload", ["list-append", "increment"])
def test_a_cluster_that_loses_commits_is_found_out(workload: str, tmp_path: Path) -> None:
    verdict = cluster_campaign(
        "postgres",
        SECONDS / 60,
        tmp_path,
        workers=2,
        workloads=[workload],
        make=asynchronous,
        faults=lambda _: {lose_acknowledged_commits: 1},
    )
    assert not verdict.valid and verdict.lost > 0, verdict.text()
    assert "NOT CLEAN" in verdict.text().splitlines()
    (kept,) = verdict.kept
    assert {"campaign.log", "s1.log", "s2.log"} <= {path.name for path in Path(kept).iterdir()}
