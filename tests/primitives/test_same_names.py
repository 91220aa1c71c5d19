"""A lease and a step may have the same name: holding the one is not holding the other."""

from occamdb import Database, RunId


def test_a_step_runs_under_a_lease_of_its_name(db: Database, run: RunId) -> None:
    with db.leases.hold(run, "fetch"):
        assert db.steps.run(run, "fetch", lambda: 1) == 1


def test_a_step_holds_a_lease_of_its_name(db: Database, run: RunId) -> None:
    def fetch() -> int:
        with db.leases.hold(run, "fetch", timeout=5):
            return 2

    assert db.steps.run(run, "fetch", fetch) == 2
