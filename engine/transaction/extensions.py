"""Extensions: how a primitive becomes `txn.<name>` and `db.<name>` although the engine does not know it.

1. An extension is a name and a factory. The factory takes the transaction or the database and returns a
   facade. It is called at each access, so a facade should be cheap and hold nothing but its owner.
2. A factory may be named as text, "package.module:attribute". It is then imported at the first use.
3. Registration changes no class: `Database` and `Transaction` look here for a name that they do not have
   themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ..model.errors import AlreadyExistsError, InvalidArgumentError

__all__ = ["Extensible", "Factory", "extension_names", "register_extension"]

Factory = Callable[[Any], Any]

_factories: dict[str, Factory | str] = {}


class Extensible:
    """A class whose instances have the registered extensions as attributes.

    Attributes:
      inner_names: public names that primitives and tools use, and that `dir` does not show to users.
    """

    __slots__ = ()
    inner_names: ClassVar[frozenset[str]] = frozenset({"inner_names"})

    if not TYPE_CHECKING:  # a type checker would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            # Only a name that the class does not have gets here.
            if name not in _factories:
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
                )
            return _factory(name)(self)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *_factories} - self.inner_names)


def _factory(name: str) -> Factory:
    """The factory registered as `name`, imported now if it was named as text."""
    factory = _factories[name]
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = _factories[name] = getattr(import_module(module), attribute)
    return factory


def register_extension(name: str, factory: Factory | str) -> None:
    """Make `txn.<name>` and `db.<name>` return what `factory` makes of the transaction or database.

    Registering the same factory again changes nothing.

    Args:
      name: an identifier that does not begin with an underscore.
      factory: called with the Transaction or Database; or "module:attribute" naming it.

    Raises:
      InvalidArgumentError: not a usable name or factory.
      AlreadyExistsError: the name already has another meaning.
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
    if name in _factories and _is_same(name, factory):
        return
    if name in _factories or any(hasattr(owner, name) for owner in _subclasses(Extensible)):
        raise AlreadyExistsError(
            f"{name!r} is taken on transactions or databases", hint="choose another name"
        )
    _factories[name] = factory


def _is_same(name: str, factory: Factory | str) -> bool:
    if _factories[name] == factory:
        return True
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(import_module(module), attribute)
    return _factory(name) is factory


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def extension_names() -> tuple[str, ...]:
    """The names registered, in order of registration."""
    return tuple(_factories)
