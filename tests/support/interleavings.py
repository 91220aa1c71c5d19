"""Every interleaving of a few small programs on memory with store buffers, as x86 has it.

A program is a generator function. It yields what it does to memory and is sent what it read:

    ("load", name)                  the value, from the own store buffer if it is there
    ("store", name, value)          goes to the own buffer, which reaches memory some time later, in order
    ("fence",)                      waits until the own buffer is empty
    ("add", name, n)                atomic, empties the buffer first; the new value
    ("cas", name, old, new)         atomic, empties the buffer first; whether it was done
    ("sleep", name, value)          futex wait: returns at once if memory differs, else sleeps until woken
    ("wake", name)                  futex wake

Generators cannot be copied, so a state is reached again by repeating its steps; programs are a few dozen steps long.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Machine", "Program", "explore"]

Program = Callable[[], Generator[tuple[Any, ...], Any, None]]


@dataclass
class _Thread:
    program: Generator[tuple[Any, ...], Any, None]
    request: tuple[Any, ...] | None
    buffer: list[tuple[str, int]] = field(default_factory=list)
    asleep: str | None = None
    answers: list[Any] = field(default_factory=list)


class Machine:
    """Memory and threads in one state."""

    def __init__(self, programs: list[Program], memory: dict[str, int]) -> None:
        self.memory = dict(memory)
        self.threads = []
        for program in programs:
            running = program()
            self.threads.append(_Thread(running, next(running)))

    def moves(self) -> list[tuple[str, int]]:
        """What can happen next."""
        found = []
        for index, thread in enumerate(self.threads):
            if thread.buffer:
                found.append(("drain", index))
            if thread.request is None or thread.asleep is not None:
                continue
            if thread.request[0] in ("load", "store", "wake") or not thread.buffer:
                found.append(("step", index))
        return found

    def do(self, move: tuple[str, int]) -> None:
        thread = self.threads[move[1]]
        if move[0] == "drain":
            name, value = thread.buffer.pop(0)
            self.memory[name] = value
            return
        assert thread.request is not None
        kind, *rest = thread.request
        answer = getattr(self, f"_{kind}")(thread, *rest)
        if thread.asleep is None:
            self._go_on(thread, answer)

    def _go_on(self, thread: _Thread, answer: Any) -> None:
        thread.answers.append(answer)
        try:
            thread.request = thread.program.send(answer)
        except StopIteration:
            thread.request = None

    def _load(self, thread: _Thread, name: str) -> int:
        for other, value in reversed(thread.buffer):
            if other == name:
                return value
        return self.memory[name]

    def _store(self, thread: _Thread, name: str, value: int) -> None:
        thread.buffer.append((name, value))

    def _fence(self, _thread: _Thread) -> None:
        pass

    def _add(self, _thread: _Thread, name: str, amount: int) -> int:
        self.memory[name] += amount
        return self.memory[name]

    def _cas(self, _thread: _Thread, name: str, old: int, new: int) -> bool:
        if self.memory[name] != old:
            return False
        self.memory[name] = new
        return True

    def _sleep(self, thread: _Thread, name: str, value: int) -> None:
        if self.memory[name] == value:
            thread.asleep = name

    def _wake(self, _thread: _Thread, name: str) -> None:
        for thread in self.threads:
            if thread.asleep == name:
                thread.asleep = None
                self._go_on(thread, None)

    def fingerprint(self) -> tuple[Any, ...]:
        """Equal for states with the same future: a thread is where its answers have brought it."""
        return (
            tuple(sorted(self.memory.items())),
            tuple((tuple(t.answers), tuple(t.buffer), t.asleep, t.request is None) for t in self.threads),
        )

    @property
    def stuck(self) -> bool:
        """Whether a thread sleeps that nobody will wake."""
        return not self.moves() and any(thread.request is not None for thread in self.threads)


def explore(programs: list[Program], memory: dict[str, int]) -> tuple[int, list[tuple[str, int]] | None]:
    """Try every order of steps. (states seen, the steps that end with a thread asleep for ever, or None)."""
    seen: set[tuple[Any, ...]] = set()
    pending: list[list[tuple[str, int]]] = [[]]
    while pending:
        path = pending.pop()
        machine = Machine(programs, memory)
        for move in path:
            machine.do(move)
        mark = machine.fingerprint()
        if mark in seen:
            continue
        seen.add(mark)
        if machine.stuck:
            return len(seen), path
        pending += [[*path, move] for move in machine.moves()]
    return len(seen), None
