"""The inspector of a database on a server."""

import occamdb
from occamdb import Thought, Transaction
from tests.support.command_servers import server, server_kind
from tests.support.inspecting import looking_at

__all__ = ["server", "server_kind"]


def everything(txn: Transaction) -> None:
    """Something in several primitives."""
    txn.put("key", {"needle": 1})
    txn.events.append("step", {"n": 1})
    txn.traces.record(Thought("a thought"))
    txn.cells.init("cell", 5)


def test_the_pages_of_a_database_on_a_server(server: str) -> None:
    with occamdb.open(server) as db:
        run = db.runs.create_run("on a server")
        db.transaction(run, everything)
        with looking_at(server) as looked:
            assert looked.page("/").one("condition")["data-kind"] == "server"
            for address, words in [
                ("/", "on a server"),
                ("/runs?text=SERVER", "on a server"),
                (f"/run/{run.run_id}", "a thought"),
                (f"/run/{run.run_id}/traces", "a thought"),
                (f"/run/{run.run_id}/events", "step"),
                (f"/run/{run.run_id}/keys", "needle"),
                (f"/run/{run.run_id}/cells", "cell"),
                ("/commits", "1 key, 1 event, 1 trace, 1 cell"),
                ("/conflicts", "Conflicts"),
                ("/lanes", "on a server"),
                (f"/compare?left={run.run_id}&right={run.run_id}", "alike"),
            ]:
                page = looked.page(address)
                text = " ".join(sorted(page.text.split())) if "1 key" in words else page.text
                wanted = words.replace(",", "").split() if "1 key" in words else [words]
                assert all(word in text for word in wanted), (address, page.text)
                assert "cannot be read" not in page.text, address


def test_the_feed_follows_a_server(server: str) -> None:
    with occamdb.open(server) as db, looking_at(server) as looked:
        run = db.runs.create_run("r")
        looked.feed.look()
        before = looked.feed.version
        db.kv.put(run, "k", 1)
        looked.feed.look()
        assert before is not None and looked.feed.version is not None and looked.feed.version > before
        message = looked.feed._kept[-1]
        assert str(run.run_id) in message.data and '"complete": true' in message.data


def test_another_namespace_of_a_server(server: str) -> None:
    with occamdb.open(server) as db:
        db.namespace("acme", "bot", "seven").runs.create_run("of seven")
        db.runs.create_run("of the default one")
        with looking_at(server, "acme/bot/seven") as looked:
            page = looked.page("/runs")
            assert "of seven" in page.text and "of the default one" not in page.text


def test_a_server_without_a_database_is_said_to_have_none(server: str, server_kind: tuple[str, str]) -> None:
    """etcd needs no schema: a database there is empty before anything was written."""
    is_empty = server_kind[0] == "etcd"
    with looking_at(server) as looked:
        assert looked.page("/").one("condition")["data-kind"] == ("server" if is_empty else "unreadable")
        assert (looked.client.get("/runs").status_code == 200) is is_empty
