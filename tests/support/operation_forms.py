"""One spelling for both forms of an operation, so that every test of an operation tests both.

`Outside(db, run).kv.get("k")` is `db.kv.get(run, "k")`; `Inside(db, run).kv.get("k")` begins a transaction, calls
`txn.kv.get("k")` and commits. What a stream yields is collected, since it ends with its transaction.
"""

from collections.abc import Callable, Iterator
from typing import Any


class _Form:
    def __init__(self, db: Any, run: Any) -> None:
        self.db = db
        self.run = run

    def __getattr__(self, primitive: str) -> "_Calls":
        return _Calls(self, primitive)

    def call(self, primitive: str, method: str, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class _Calls:
    def __init__(self, form: _Form, primitive: str) -> None:
        self._form = form
        self._primitive = primitive

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._form.call(self._primitive, method, args, kwargs)


class Outside(_Form):
    inside = False

    def call(self, primitive: str, method: str, args: Any, kwargs: Any) -> Any:
        facade = getattr(self.db, primitive)
        run = () if primitive == "runs" else (self.run,)
        return _collected(getattr(facade, method)(*run, *args, **kwargs))


class Inside(_Form):
    inside = True

    def call(self, primitive: str, method: str, args: Any, kwargs: Any) -> Any:
        with self.db.begin(self.run) as txn:
            return _collected(getattr(getattr(txn, primitive), method)(*args, **kwargs))


def _collected(result: Any) -> Any:
    return list(result) if isinstance(result, Iterator) else result
