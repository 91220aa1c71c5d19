"""Servers for tests and campaigns: clusters of PostgreSQL and of etcd on this machine, with faults on demand.

Everything listens on loopback alone, keeps its files in one temporary directory, and ends with the process that
started it, also when that process is killed.
"""

from __future__ import annotations

from occamdb.stress.clusters.base import Cluster, Server
from occamdb.stress.clusters.etcd import EtcdCluster
from occamdb.stress.clusters.keeper import ClusterError
from occamdb.stress.clusters.postgres import PostgresCluster
from occamdb.stress.clusters.proxy import Proxy

__all__ = ["Cluster", "ClusterError", "EtcdCluster", "PostgresCluster", "Proxy", "Server"]
