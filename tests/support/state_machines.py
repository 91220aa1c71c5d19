"""What the state machines of the primitives share: a database, a run, and a transaction that may or may not be open.

Each machine compares a primitive with a plain model. While a transaction is open, operations go to it and to a copy of
the model, which replaces the model on commit and is dropped on abort; otherwise they go to the implicit form.
"""

import copy
import functools
from typing import Any

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from occamdb.engine.model.public_types import RunId
from tests.support.audit import audit
from tests.support.engines import Engine


def run_machine(machine: type["Machine"], engine: Engine) -> None:
    """Any sequence of calls that hypothesis finds, on databases of this engine."""
    made: Any = functools.partial(machine, engine)
    run_state_machine_as_test(
        made, settings=settings(max_examples=engine.examples(25), stateful_step_count=30)
    )


class Machine(RuleBasedStateMachine):
    primitive = ""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.db: Any = engine.fresh()
        self.run_id = RunId.new()
        self.txn: Any = None
        self.committed: Any = self.empty_model()
        self.model: Any = self.committed

    def empty_model(self) -> Any:
        raise NotImplementedError

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The operation in whichever form is current."""
        if self.txn is not None:
            return getattr(getattr(self.txn, self.primitive), method)(*args, **kwargs)
        run = () if self.primitive == "runs" else (self.run_id,)
        return getattr(getattr(self.db, self.primitive), method)(*run, *args, **kwargs)

    @precondition(lambda self: self.txn is None)
    @rule()
    def begin(self) -> None:
        self.txn = self.db.begin(self.run_id)
        self.model = copy.deepcopy(self.committed)

    @precondition(lambda self: self.txn is not None)
    @rule()
    def commit(self) -> None:
        self.txn.commit()
        self.committed, self.txn = self.model, None

    @precondition(lambda self: self.txn is not None)
    @rule()
    def abort(self) -> None:
        self.txn.abort()
        self.model, self.txn = self.committed, None

    def teardown(self) -> None:
        if self.txn is not None:
            self.abort()
        self.check_all()
        audit(self.db, self.run_id)
        self.engine.discard(self.db)

    def check_all(self) -> None:
        """Compare everything that can be read."""
