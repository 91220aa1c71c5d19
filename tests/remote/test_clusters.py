"""Clusters do what they say: nothing acknowledged is lost over a fail-over, and nothing stays behind."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb.stress.clusters import Cluster, ClusterError, EtcdCluster, PostgresCluster
from occamdb.stress.clusters.keeper import poll_until
from tests.support.processes import Peer, Worker, state_of, wait_until

pytestmark = pytest.mark.usefixtures("clustered")
Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def three() -> Iterator[PostgresCluster]:
    from tests.support.servers import needs_servers

    needs_servers()
    with PostgresCluster(standbys=2) as cluster:
        cluster.query(cluster.primary, "create table noted (number int primary key)")
        yield cluster


def numbers(cluster: PostgresCluster, name: str = "") -> list[int]:
    text = cluster.query(name or cluster.primary, "select number from noted order by 1")
    return [int(line) for line in text.splitlines()]


def note(cluster: PostgresCluster, number: int) -> None:
    cluster.query(cluster.primary, f"insert into noted values ({number})")


def test_fail_over_promotes_the_standby_that_has_everything(three: PostgresCluster) -> None:
    before = numbers(three)
    first, (behind, ahead) = three.primary, three.standbys
    three.kill(behind)  # what is acknowledged from here on is on `ahead` alone
    note(three, 1)
    assert three.fail_over() == ahead
    assert not three.is_alive(first)
    three.wait_until_ready()
    note(three, 2)
    with pytest.raises(ClusterError, match="fenced"):
        three.restart(first)
    three.rejoin(first)
    three.wait_until_ready()
    for name in three.servers:
        wait_until(lambda name=name: numbers(three, name) == [*before, 1, 2])  # type: ignore[misc]


def test_an_old_primary_that_went_astray_rejoins_without_what_it_had_alone(three: PostgresCluster) -> None:
    before, first = numbers(three), three.primary
    for name in three.standbys:
        three.kill(name)
    # No standby has it, and by the rule of synchronous replication it is not acknowledged.
    three.query(first, "insert into noted values (99)", local=True)
    three.fail_over()
    three.wait_until_ready()
    note(three, 3)
    three.rejoin(first)
    three.wait_until_ready()
    wait_until(lambda: numbers(three, first) == sorted([*before, 3]))


def test_a_primary_that_is_cut_off_commits_nothing(three: PostgresCluster) -> None:
    before, first = numbers(three), three.primary
    three.servers[first].proxy.cut()
    with pytest.raises(ClusterError, match="did not answer"):
        note(three, 4)  # flushed here, and no standby hears of it
    three.fail_over()
    three.heal()
    three.wait_until_ready()
    assert numbers(three) == before
    three.rejoin(first)
    three.wait_until_ready()


def test_a_paused_primary_answers_again_after_resume(three: PostgresCluster) -> None:
    three.pause(three.primary)
    with pytest.raises(ClusterError, match="did not answer"):
        three.query(three.primary, "select 1", timeout=0.5)
    three.resume(three.primary)
    assert three.query(three.primary, "select 1") == "1"


@pytest.mark.parametrize("members", [1, 3])
def test_etcd_elects_and_members_come_back(members: int) -> None:
    with EtcdCluster(members) as cluster:
        leader = cluster.primary
        cluster.kill(leader)
        if members > 1:
            assert cluster.fail_over() != leader
        cluster.restart(leader)
        cluster.wait_until_ready()
        first = cluster.primary
        if members > 1:
            cluster.pause(first)
            poll_until(lambda: cluster.primary != first, 30, "the election of another leader")
            cluster.heal()
            cluster.wait_until_ready()


def _user_of_a_cluster(peer: Peer, kind: str) -> None:
    cluster: Cluster = PostgresCluster(1) if kind == "postgres" else EtcdCluster(3)
    with cluster:
        processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        inside = [pid for pid in processes if _works_in(pid, cluster.directory)]
        peer.say((str(cluster.directory), inside))
        peer.hear()


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(str(directory))
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["postgres", "etcd"])
def test_nothing_stays_when_the_user_is_killed(kind: str, start: Start) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    worker = start(_user_of_a_cluster, kind)
    directory, processes = worker.hear()
    assert len(processes) > 3
    worker.signal(signal.SIGKILL)
    for pid in processes:
        wait_until(lambda pid=pid: state_of(pid) in ("", "Z", "X"))  # type: ignore[misc]
    wait_until(lambda: not Path(directory).exists())
    assert {name for name in set(os.listdir("/dev/shm")) - shared_memory if "ostgre" in name} == set()
