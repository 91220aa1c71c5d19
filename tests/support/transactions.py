"""Short forms for the tests of transactions."""

from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Transaction
from occamdb.engine.model.errors import ConflictError


def conflicts_of(commit: Callable[[], Any]) -> tuple[Any, ...]:
    with pytest.raises(ConflictError) as caught:
        commit()
    return caught.value.conflicts


def rows(txn: Transaction, prefix: str = "") -> dict[Any, Any]:
    return {key: row.value for key, row in txn.scan(prefix)}
