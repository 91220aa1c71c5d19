"""`default` and `restore` for classes of the user's own: dataclasses, enums and pydantic models.

A value is stored as the name of its class and its fields, never as a pickle: reading it runs no code but the
constructor of a class that was named to `value_hooks`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypedDict

from .errors import InvalidArgumentError, ValueEncodingError

__all__ = ["Hooks", "value_hooks"]


class Hooks(TypedDict):
    """The two keywords of `open`."""

    default: _Default
    restore: _Restore


def value_hooks(*classes: type, **named: type) -> Hooks:
    """The `default` and `restore` of `open` for some classes of yours.

        db = occamdb.open("agents.db", **occamdb.value_hooks(Point, Customer))

    Args:
      classes: dataclasses, enums or pydantic models. Each is stored under its `__qualname__`.
      named: the same under names of your own, for classes that have equal names or were renamed since.

    Raises:
      InvalidArgumentError: not such a class, or two of one name.
    """
    table: dict[str, type] = dict(named)
    for cls in classes:
        name = getattr(cls, "__qualname__", repr(cls))
        if table.setdefault(name, cls) is not cls:
            raise InvalidArgumentError(
                f"two classes are named {name!r}", hint=f"value_hooks({name}, another_name=TheOther)"
            )
    for cls in table.values():
        if not isinstance(cls, type) or not (
            is_dataclass(cls) or issubclass(cls, Enum) or hasattr(cls, "model_validate")
        ):
            raise InvalidArgumentError(
                f"{cls!r:.80} is not a dataclass, an enum or a pydantic model",
                hint="give `open` a default= and a restore= of your own for it",
            )
    return {"default": _Default(table), "restore": _Restore(table)}


class _Default:
    """Turns an instance of a known class into its name and its fields."""

    def __init__(self, table: dict[str, type]) -> None:
        self.table = table
        self._names = {cls: name for name, cls in table.items()}

    def __call__(self, value: Any) -> tuple[str, Any] | None:
        cls = type(value)
        name = self._names.get(cls)
        if name is None:
            return None
        if isinstance(value, Enum):
            return name, value.value
        if is_dataclass(cls):
            return name, {field.name: getattr(value, field.name) for field in fields(cls)}
        return name, value.model_dump(mode="json")

    def __reduce__(self) -> tuple[Any, ...]:
        return _Default, (self.table,)


class _Restore:
    """Makes an instance of a known class from its name and its fields."""

    def __init__(self, table: dict[str, type]) -> None:
        self.table = table

    def __call__(self, name: str, data: Any) -> Any:
        cls: Any = self.table.get(name)
        if cls is None:
            raise ValueEncodingError(
                f"a value of the class {name!r} is stored here, which is not among the classes of this database",
                path="value",
                hint=f"open it with value_hooks({name}, ...), or without restore= to read it as stored",
            )
        if issubclass(cls, Enum):
            return cls(data)
        if not is_dataclass(cls):
            return cls.model_validate(data)
        by_constructor = {field.name for field in fields(cls) if field.init}
        make: Any = cls
        value = make(**{key: item for key, item in data.items() if key in by_constructor})
        for field in fields(cls):
            if not field.init and field.name in data:
                object.__setattr__(value, field.name, data[field.name])
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return _Restore, (self.table,)
