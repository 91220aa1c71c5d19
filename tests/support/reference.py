"""The tables of docs/reference.md, made from the code: settings with their ranges, errors with their codes.

`python -m tests.support.reference` writes them into the document; tests/docs/test_documents.py compares.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import occamdb
from occamdb.engine.model import limits
from occamdb.engine.model.settings import Settings
from occamdb.ipc import errors as ipc_errors

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "reference.md"

# What to do about an error that has no hint of its own: its hint is written where it is raised.
REMEDIES = {
    "AlreadyExistsError": "choose another name, or read what is there",
    "ServerUnavailable": "`occamdb status` with the same URL; raise `timeout`",
    "ServerSetupError": "what the hint names",
    "UnsupportedError": "what the hint says",
    "CoordinatorUnavailable": "read `coordinator.log` in the directory; raise `timeout`",
    "InvalidArgumentError": "correct the argument that the message names",
    "InvalidKeyError": "give a non-empty `str` or `bytes`",
    "InvalidTransition": "ask for one of the states in `.allowed`",
    "KeyTooLarge": "shorten the key, or raise `key_size_max`",
    "LimitExceeded": "see the classes below it",
    "NotFoundError": "create it first, or check the name",
    "OccamError": "the base class: catch it to catch all of them",
    "ProtocolError": "all processes must run the same version of occamdb; otherwise report it",
    "ReadOnlyError": "begin a transaction without `read_only`",
    "SettingsError": "correct the setting that the message names",
    "SettingsMismatchError": "leave the setting out, or stop the coordinator and change `settings.toml`",
    "TooManyChannelsError": "close databases that are not used, or raise `channel_count_max`",
    "TransactionStateError": "begin a new transaction",
    "TransactionTooLarge": "split the transaction, or raise `transaction_size_max`",
    "ValueEncodingError": "store one of the types that the message lists",
    "ValueTooLarge": "split the value, or raise `value_size_max`",
}


def errors() -> list[type[ipc_errors.OccamError]]:
    """The base class and every error of the engine, one a code, ordered by code."""
    found = {"occam.error": occamdb.OccamError}
    waiting = list(occamdb.OccamError.__subclasses__())
    for error in waiting:
        waiting += error.__subclasses__()
        if error.__module__.startswith("occamdb.engine."):
            found.setdefault(error.code, error)
    return [found[code] for code in sorted(found)]


def remedy(error: type[ipc_errors.OccamError]) -> str:
    """What a user can do: the hint of the class, or the one written above."""
    if error.__name__ in REMEDIES:
        return REMEDIES[error.__name__]
    parameter = inspect.signature(error.__init__).parameters.get("hint")
    default = parameter.default if parameter is not None else ""
    hint = error.default_hint or (default if isinstance(default, str) else "")
    assert hint, f"{error.__name__} has no hint: name a remedy in {__name__}"
    return hint


def meaning(item: type) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.getdoc(item) or ""
    return " ".join(text.split("\n\n")[0].split())


def error_rows() -> Iterator[str]:
    """One row an error."""
    yield "| error | code | retry | meaning | what to do |"
    yield "|---|---|---|---|---|"
    for error in errors():
        retry = "yes" if error.retryable else ""
        yield f"| `{error.__name__}` | `{error.code}` | {retry} | {meaning(error)} | {remedy(error)} |"


def described(owner: type) -> dict[str, str]:
    """What the "Attributes" of a docstring say about each of them."""
    text = (inspect.getdoc(owner) or "").partition("Attributes:\n")[2]
    pairs = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in pairs}


def setting_rows() -> Iterator[str]:
    """One row a setting, those of `Limits` included."""
    yield "| setting | default | range | meaning |"
    yield "|---|---|---|---|"
    words, defaults = described(Settings), Settings()
    for item in fields(Settings):
        rule = item.metadata
        if rule:
            shown = _shown(rule["kind"])
            span = f"{shown(rule['low'])} to {shown(rule['high'])}"
            if rule.get("power_of_two"):
                span += ", a power of two"
            yield f"| `{item.name}` | {shown(getattr(defaults, item.name))} | {span} | {words[item.name]} |"
    words = described(limits.Limits)
    for limit in fields(limits.Limits):
        low, high = limits._RANGES[limit.name]
        span = f"{limits.sized(low)} to {limits.sized(high)}"
        default = limits.sized(getattr(defaults.limits, limit.name))
        yield f"| `{limit.name}` | {default} | {span} | {words[limit.name]} |"


def _shown(kind: str) -> Callable[[float], str]:
    if kind == "size":
        return lambda value: limits.sized(int(value))
    return _duration if kind == "seconds" else (lambda value: f"{int(value):,}")


def _duration(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.0f} days" if days >= 1 else f"{seconds:g} s"


def with_tables(text: str) -> str:
    """The document with its tables made anew."""
    for name, rows in (("settings", setting_rows()), ("errors", error_rows())):
        begin, end = f"<!-- {name}: made from the code -->\n", f"<!-- end of {name} -->\n"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        assert found_begin and found_end, f"{DOCUMENT.name} lacks the marks around {name}"
        text = before + begin + "".join(row + "\n" for row in rows) + end + after
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
