"""How primitives become `txn.<name>` and `db.<name>` without the engine knowing of any.

1. An extension is a name and a factory; the factory gets the transaction or the database and returns a facade.
   It is called at each access, so a facade should be cheap and hold nothing but its owner.
2. A factory may be named as text, "package.module:attribute": it is imported at the first use.
3. Registration changes classes, so every transaction and database of the process has the extension, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from .database import Database
from .errors import AlreadyExistsError, InvalidArgumentError
from .transaction import Transaction

__all__ = ["Extension", "Factory", "extension_names", "register_extension"]

Factory = Callable[[Any], Any]

_OWNERS: tuple[type, ...] = (Transaction, Database)


class Extension:
    """The attribute through which a facade is reached.

    Attributes:
      name: of the attribute.
    """

    __slots__ = ("_factory", "name")

    def __init__(self, name: str, factory: Factory | str) -> None:
        self.name = name
        self._factory = factory

    @property
    def factory(self) -> Factory:
        """The factory, imported now if it was named as text."""
        factory = self._factory
        if isinstance(factory, str):
            module, _, attribute = factory.partition(":")
            self._factory = factory = getattr(import_module(module), attribute)
        return factory

    def __get__(self, owner: Any, owner_type: type | None = None) -> Any:
        if owner is None:
            return self
        factory = self._factory
        return (factory if not isinstance(factory, str) else self.factory)(owner)

    def __set__(self, owner: Any, value: Any) -> None:
        raise AttributeError(f"{self.name} is an extension of {type(owner).__name__} and cannot be assigned")

    def is_same(self, factory: Factory | str) -> bool:
        """Whether it was registered with this factory."""
        return self._factory == factory or (
            isinstance(factory, str) and self.factory is Extension("", factory).factory
        )


def register_extension(name: str, factory: Factory | str) -> None:
    """Make `txn.<name>` and `db.<name>` give what `factory` makes of the transaction or database.

    Registering the same factory again changes nothing.

    Args:
      name: an identifier that does not begin with an underscore.
      factory: called with the Transaction or Database; or "module:attribute" naming it.

    Raises:
      InvalidArgumentError: not a usable name or factory.
      AlreadyExistsError: the name means something else already.
    """
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise InvalidArgumentError(
            f"{name!r} cannot be the name of an extension", hint="use a plain identifier"
        )
    if not callable(factory) and not (isinstance(factory, str) and factory.count(":") == 1):
        raise InvalidArgumentError(
            f"the factory of {name!r} must be callable or 'module:attribute', got {factory!r}",
            hint="a class whose constructor takes the transaction or database will do",
        )
    present = [getattr(owner, name) for owner in _OWNERS if hasattr(owner, name)]
    if present:
        if all(isinstance(item, Extension) and item.is_same(factory) for item in present):
            return
        raise AlreadyExistsError(
            f"{name!r} is taken on transactions or databases", hint="choose another name"
        )
    extension = Extension(name, factory)
    for owner in _OWNERS:
        setattr(owner, name, extension)


def extension_names() -> tuple[str, ...]:
    """The names registered, in order of registration."""
    return tuple(name for name, item in vars(Transaction).items() if isinstance(item, Extension))
