"""The path of every call of an operation outside a transaction, as far as it is the same for all. Compiled, since it
would cost as much as the commit. `operations.py` says what an operation is, `wrong_calls.py` what a wrong call is told.
"""

from cpython.iterator cimport PyIter_Check

from ..engine.transaction._space cimport Space, make_space, with_tag

cdef object new_object = object.__new__


def shielded(function, is_wrong, errors):
    """`function(instance, ...)`. After one of `errors`, `is_wrong(error, instance, args, kwargs)` may give another."""
    cdef tuple caught = errors

    def call(instance, /, *args, **kwargs):
        try:
            return function(instance, *args, **kwargs)
        except caught as error:
            wrong = is_wrong(error, instance, args, kwargs)
            if wrong is None:
                raise
        raise wrong

    return call


cdef dict kinds = {}                # class of a facade -> (tag, raw); None: it has its own idea of its space


cdef tuple kind_of(object cls):
    own = getattr(cls, "_space_in", None)
    plain = own is not None and own is getattr(cls, "_usual_space_in", None)
    kinds[cls] = kind = (int(cls.tag), bool(cls.raw)) if plain else None
    return kind


cdef object facade_over(object cls, Space txn):
    """What `cls(txn)` gives, for a transaction."""
    facade = new_object(cls)
    facade._handle = txn
    facade.inside = True
    kind = kinds[cls] if cls in kinds else kind_of(cls)
    if kind is None:
        facade.space = facade._space_in(txn)
    else:
        facade.space = make_space(txn.core, with_tag(txn.prefix, (<tuple>kind)[0]), (<tuple>kind)[1])
    return facade


cdef tuple repeatable(tuple args):
    for value in args:
        if PyIter_Check(value):
            return tuple([list(value) if PyIter_Check(value) else value for value in args])
    return args


def in_transaction(body, policy):
    """The form of an operation that is a transaction of its own, retried by `policy`: (facade, run_id, ...).

    An iterator among the arguments is read into a list first, so that all attempts see the same items.
    """

    def outside(instance, run_id, /, *args, **kwargs):
        cls = type(instance)
        args = repeatable(args)
        for name, value in kwargs.items():
            if PyIter_Check(value):
                kwargs[name] = list(value)

        def attempt(txn):
            return body(facade_over(cls, txn), *args, **kwargs)

        return instance._handle.transaction(run_id, attempt, retry=policy)

    return outside
