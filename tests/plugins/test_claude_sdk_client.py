"""The client of the Claude Agent SDK with a session store: sessions that other processes resume.

The SDK is the real one. The command line behind it, which needs a key and a network, is played by
`tests/support/claude_command.py`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ResultMessage,
    list_sessions_from_store,
    project_key_for_directory,
    query,
)

from occamdb.plugins.claude_sdk import OccamSessionStore
from tests.support import claude_command
from tests.support.processes import Peer, Worker


async def turn(path: str, directory: str, prompt: str, resume: str | None, latest: bool) -> tuple[str, str]:
    """One turn with the SDK; the id of its session, and the answer."""
    command = Path(directory) / "claude"
    if not command.exists():
        source = Path(claude_command.__file__).read_text(encoding="utf-8")
        command.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        command.chmod(0o700)
    store = OccamSessionStore(path)
    options = ClaudeAgentOptions(
        cli_path=command,
        cwd=directory,
        env={
            "CLAUDE_CONFIG_DIR": f"{directory}/config",
            "PROJECT_KEY": project_key_for_directory(directory),
        },
        session_store=store,
        resume=resume,
        continue_conversation=latest,
    )
    found = [each async for each in query(prompt=prompt, options=options) if isinstance(each, ResultMessage)]
    await store.aclose()
    assert found[0].result is not None
    return found[0].session_id, found[0].result


def turn_of(peer: Peer, *arguments: object) -> tuple[str, str]:
    return asyncio.run(turn(*arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("latest", [False, True], ids=["by id", "the latest"])
def test_a_session_is_resumed_by_other_processes(
    tmp_path: Path, database_path: Path, start: Callable[..., Worker], latest: bool
) -> None:
    directory, path = str(tmp_path), str(database_path)
    session, first = start(turn_of, path, directory, "one", None, False, method="spawn").result()
    assert first == "I know 0 lines and 0 agents"
    resume = None if latest else session
    again, second = start(turn_of, path, directory, "two", resume, latest, method="spawn").result()
    assert (again, second) == (session, "I know 2 lines and 1 agents")

    async def look() -> None:
        store = OccamSessionStore(path)
        assert await turn(path, directory, "three", session, False) == (
            session,
            "I know 4 lines and 1 agents",
        )
        entries: Any = await store.load(
            {"project_key": project_key_for_directory(directory), "session_id": session}
        )
        prompts = [each["message"]["content"] for each in entries if each["type"] == "user"]
        assert prompts == ["one", "two", "three"]
        (listed,) = await list_sessions_from_store(store, directory=directory)
        assert (listed.session_id, listed.first_prompt) == (session, "one")
        await store.aclose()

    asyncio.run(look())
