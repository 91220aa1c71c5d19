"""The faults that a cluster campaign chooses from: one function each, with a Stage to act on.

Each leaves the cluster whole: it ends its own fault, brings back what it killed, and waits until a commit is
acknowledged. So the next fault meets a cluster that has every commit that a reader may have seen (see invariant 4 of
`clusters/postgres.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from occamdb.stress.clusters import Cluster, EtcdCluster, PostgresCluster
from occamdb.stress.clusters.proxy import Direction

__all__ = ["ON_SERVERS", "Fault", "Stage", "faults_of"]

# In seconds: about as long as the shortest timeout of the clients.
LONGEST = 2.0
FAIL_OVER_SHARE = 0.7  # of what befalls a primary of PostgreSQL; else the same server comes back


@dataclass(slots=True)
class Stage:
    """A cluster under faults. `done` counts them by name, and `notes` tells what happened when.

    Attributes:
      killed: when a primary or leader was killed or fenced, on the clock of `time.monotonic`.
    """

    cluster: Cluster
    dice: Random
    done: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def carry_out(self, fault: Fault) -> None:
        """One fault from its beginning until the cluster is whole again."""
        name = fault.__name__
        self.note(f"{name}; the primary is {self.cluster.primary}")
        fault(self)
        self.cluster.wait_until_ready()
        self.done[name] = self.done.get(name, 0) + 1
        self.note(f"{name} is over")

    def note(self, text: str) -> None:
        """Write down what happens."""
        self.notes.append(f"{time.monotonic() - self.began:9.3f} {text}")

    def last_a_while(self, least: float = 0.1) -> None:
        """How long a fault stays."""
        time.sleep(self.dice.uniform(least, LONGEST))

    def other(self) -> str:
        """A server that is not the primary."""
        primary = self.cluster.primary
        return self.dice.choice([name for name in self.cluster.servers if name != primary])

    def kill_primary(self) -> str:
        """SIGKILL for the primary or leader; its name."""
        name = self.cluster.primary
        self.cluster.kill(name)
        self.killed.append(time.monotonic())
        return name

    def replace(self, old: str) -> None:
        """Promote the furthest standby, let clients use it for a moment, and take the old primary in again."""
        cluster = self.cluster
        assert isinstance(cluster, PostgresCluster)
        if cluster.is_alive(old):
            self.killed.append(time.monotonic())
        self.note(f"promoted {cluster.fail_over()}")
        cluster.servers[old].proxy.heal()
        cluster.wait_until_ready()
        self.note("it commits")
        time.sleep(self.dice.uniform(0.0, 0.5))
        cluster.rejoin(old)


Fault = Callable[[Stage], None]


# ---- the primary or leader ------------------------------------------------------------------------------------


def kill_primary(stage: Stage) -> None:
    """SIGKILL; a standby is promoted, or another leader elected, or the same server comes back."""
    cluster = stage.cluster
    old = stage.kill_primary()
    if isinstance(cluster, PostgresCluster):
        if stage.dice.random() < FAIL_OVER_SHARE:
            stage.replace(old)
        else:
            cluster.restart(old)
        return
    if stage.dice.random() < FAIL_OVER_SHARE:
        cluster.fail_over()
        stage.last_a_while(0.0)
    cluster.restart(old)


def stop_primary(stage: Stage) -> None:
    """SIGSTOP; it goes on by SIGCONT, or has been replaced meanwhile."""
    cluster = stage.cluster
    old = cluster.primary
    cluster.pause(old)
    stage.last_a_while()
    if isinstance(cluster, PostgresCluster) and stage.dice.random() < FAIL_OVER_SHARE:
        stage.replace(old)
    else:
        cluster.resume(old)


def cut_off_primary(stage: Stage) -> None:
    """No byte reaches it or leaves it through the proxy; then that heals, or it is replaced."""
    cluster = stage.cluster
    old = cluster.primary
    _cut_off(cluster, old)
    stage.last_a_while()
    if isinstance(cluster, PostgresCluster) and stage.dice.random() < FAIL_OVER_SHARE:
        stage.replace(old)
    cluster.heal()


# ---- the others -----------------------------------------------------------------------------------------------


def kill_other(stage: Stage) -> None:
    """SIGKILL for a standby or follower."""
    name = stage.other()
    stage.cluster.kill(name)
    stage.last_a_while()
    stage.cluster.restart(name)


def stop_other(stage: Stage) -> None:
    """SIGSTOP for a standby or follower."""
    name = stage.other()
    stage.cluster.pause(name)
    stage.last_a_while()
    stage.cluster.resume(name)


def cut_off_other(stage: Stage) -> None:
    """A standby or follower that no client reaches."""
    _cut_off(stage.cluster, stage.other())
    stage.last_a_while()
    stage.cluster.heal()


def lose_quorum(stage: Stage) -> None:
    """Every server but the primary is killed: nothing is acknowledged until they are back."""
    cluster = stage.cluster
    primary = cluster.primary
    others = [name for name in cluster.servers if name != primary]
    for name in others:
        cluster.kill(name)
    stage.last_a_while()
    for name in others:
        cluster.restart(name)


# ---- the network ----------------------------------------------------------------------------------------------


def reset_connections(stage: Stage) -> None:
    """Every connection to the primary breaks at once, several times."""
    proxy = stage.cluster.servers[stage.cluster.primary].proxy
    for _ in range(stage.dice.randint(1, 5)):
        proxy.reset()
        time.sleep(stage.dice.uniform(0.0, 0.3))


def refuse_connections(stage: Stage) -> None:
    """The primary's port is closed."""
    proxy = stage.cluster.servers[stage.cluster.primary].proxy
    proxy.refuse()
    stage.last_a_while()
    proxy.heal()


def lose_replies(stage: Stage) -> None:
    """Some chunks from or to the primary are lost, and their connections with them."""
    proxy = stage.cluster.servers[stage.cluster.primary].proxy
    for _ in range(stage.dice.randint(1, 10)):
        direction: Direction = "request" if stage.dice.random() < 0.3 else "reply"
        drop = proxy.drop_next(direction, skip=stage.dice.randrange(8), partial=stage.dice.random() < 0.3)
        drop.fired.wait(0.5)
    proxy.heal()


def slow_down(stage: Stage) -> None:
    """What goes to the primary and comes from it takes longer."""
    proxy = stage.cluster.servers[stage.cluster.primary].proxy
    proxy.delay(stage.dice.uniform(0.005, 0.2))
    stage.last_a_while()
    proxy.heal()


def _cut_off(cluster: Cluster, name: str) -> None:
    if isinstance(cluster, EtcdCluster):
        cluster.cut(name)
    else:
        cluster.servers[name].proxy.cut()


# Faults of servers, and how often each is chosen; then those of the network alone.
ON_SERVERS: dict[Fault, int] = {
    kill_primary: 6,
    stop_primary: 3,
    cut_off_primary: 3,
    kill_other: 2,
    stop_other: 2,
    cut_off_other: 1,
    lose_quorum: 1,
}
ON_NETWORK: dict[Fault, int] = {reset_connections: 1, refuse_connections: 1, lose_replies: 3, slow_down: 1}


def faults_of(cluster: Cluster) -> dict[Fault, int]:
    """The faults that a cluster can meet, with their weights."""
    if len(cluster.servers) == 1:
        alone: dict[Fault, int] = {kill_primary: 6, stop_primary: 3, cut_off_primary: 3}
        return alone | ON_NETWORK
    return ON_SERVERS | ON_NETWORK
