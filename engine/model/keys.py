"""How keys are encoded: namespace, run id, tag, user key (docs/wire-format.md).

    tenant 00 app 00 agent 00 | 16 bytes run id | 1 byte tag | user key

1. Byte order is key order, and no run's prefix is a prefix of another's: the parts end in NUL, which they
   cannot contain, and the run id and tag have fixed sizes. So one run is the contiguous range [prefix,
   successor(prefix)), and so is one tag in it.
2. "default", the usual namespace part, is written as the empty string: short keys for most databases.
3. User keys are bytes in the store. A `str` key is stored as its UTF-8, so "a" and b"a" are the same key. A
   scan or a conflict gives a key as `str`. Bytes that are not UTF-8 become lone surrogates in it
   (`surrogateescape`, as in file names), and such a `str` names the same bytes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from .errors import CorruptionError, InvalidArgumentError, InvalidKeyError, KeyTooLarge
from .limits import Limits
from .public_types import HasRunId, RunId, TypeTag, tag_of

__all__ = [
    "DecodedKey",
    "Namespace",
    "RunId",
    "TypeTag",
    "decode_key",
    "decode_user_key",
    "encode_key",
    "encode_user_key",
    "prefix_range",
    "successor",
    "tag_prefix",
]

PART_SIZE_MAX = 64
RUN_ID_SIZE = 16
DEFAULT_PART = "default"
_KEY_SIZE_MAX = Limits().key_size_max


@dataclass(frozen=True, slots=True)
class Namespace:
    """Whose data it is: tenant, application, agent, and the run when one is chosen.

    Attributes:
      tenant, app, agent: 1 to 64 bytes of UTF-8 without NUL.
      run_id: None for all runs of the agent.
    """

    tenant: str = DEFAULT_PART
    app: str = DEFAULT_PART
    agent: str = DEFAULT_PART
    run_id: RunId | None = None

    def __post_init__(self) -> None:
        for name in ("tenant", "app", "agent"):
            _check_part(name, getattr(self, name))
        if self.run_id is not None:
            object.__setattr__(self, "run_id", RunId.of(self.run_id))

    @property
    def base(self) -> bytes:
        """The encoded parts in front of the run id. The same for every run: compute it once."""
        parts = (self.tenant, self.app, self.agent)
        return b"".join((b"" if p == DEFAULT_PART else p.encode()) + b"\x00" for p in parts)

    def for_run(self, run_id: RunId | UUID | str | HasRunId) -> Namespace:
        """The same namespace with a run chosen."""
        return Namespace(self.tenant, self.app, self.agent, RunId.of(run_id))

    @property
    def prefix(self) -> bytes:
        """What every key in it begins with: of the run when one is chosen, else of all its runs."""
        return self.base if self.run_id is None else self.base + self.run_id.bytes

    @property
    def range(self) -> tuple[bytes, bytes]:
        """[start, end) of every key in it."""
        return prefix_range(self.prefix)


def _check_part(name: str, part: object) -> None:
    hint = f"{name} is text of 1 to {PART_SIZE_MAX} bytes in UTF-8, without NUL"
    if not isinstance(part, str):
        raise InvalidArgumentError(f"{name} must be str, got {type(part).__name__}", hint=hint)
    try:
        size = len(part.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{name} {part!r} is not valid Unicode: {error.reason}", hint=hint
        ) from None
    if not 1 <= size <= PART_SIZE_MAX or "\x00" in part:
        what = "contains NUL" if "\x00" in part else f"is {size} bytes"
        raise InvalidArgumentError(f"{name} {part!r} {what}", hint=hint, details={"size": size})


def tag_prefix(run_prefix: bytes, tag: int) -> bytes:
    """The prefix of every key of one tag in a run."""
    return run_prefix + bytes((tag,))


def encode_user_key(key: str | bytes, key_size_max: int = _KEY_SIZE_MAX) -> bytes:
    """The bytes of a user key.

    Raises:
      InvalidKeyError: empty, not str or bytes, or with a surrogate that `decode_user_key` never makes.
      KeyTooLarge: more bytes than `key_size_max`.
    """
    if isinstance(key, str):
        raw = _encode_text(key)
    elif isinstance(key, bytes):
        raw = bytes(key)
    else:
        raise InvalidKeyError(
            f"a key is str or bytes, got {type(key).__name__}",
            hint="inside a transaction the run is given already: leave it out"
            if isinstance(key, UUID) or hasattr(key, "run_id")
            else "str(key) or bytes(key) makes it one",
            details={"type": type(key).__name__},
        )
    if not raw:
        raise InvalidKeyError("the key is empty", hint="a key has at least one byte")
    if len(raw) > key_size_max:
        raise KeyTooLarge(size=len(raw), limit=key_size_max)
    return raw


def _encode_text(key: str) -> bytes:
    try:
        return str.encode(key)
    except UnicodeEncodeError as error:
        position = error.start
    try:
        raw = str.encode(key, "utf-8", "surrogateescape")
        # Escaped bytes that are UTF-8 when put together would be a second name of the same key.
        if decode_user_key(raw) == key:
            return raw
    except UnicodeEncodeError as error:
        position = error.start
    raise InvalidKeyError(
        f"the key {_shown(key)} has a surrogate at position {position} that stands for no byte of a key",
        hint="use bytes for keys that are not text",
    )


def encode_key(prefix: bytes, user_key: str | bytes, key_size_max: int = _KEY_SIZE_MAX) -> bytes:
    """The stored key: `prefix` (namespace, run and tag, from `tag_prefix`) and the user key.

    Raises:
      InvalidKeyError: the user key is empty, not str or bytes, or not valid Unicode.
      KeyTooLarge: it has more bytes than `key_size_max`.
    """
    return prefix + encode_user_key(user_key, key_size_max)


def _shown(key: str) -> str:
    return ascii(key) if len(key) <= 60 else f"{key[:60]!a}..."


def decode_user_key(raw: bytes) -> str:
    """A user key as users see it: text, in which bytes that are not UTF-8 are lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class DecodedKey:
    """A stored key taken apart.

    Attributes:
      namespace: with its run.
      tag: a `TypeTag`, or the number of a later primitive's.
      user_key: as `decode_user_key` gives it.
    """

    namespace: Namespace
    tag: TypeTag | int
    user_key: str


def decode_key(key: bytes) -> DecodedKey:
    """Take a stored key apart, for messages and tools.

    Raises:
      CorruptionError: it is not a key `encode_key` could have made.
    """
    namespace, position = _decode_namespace(key)
    rest = key[position:]
    if len(rest) < RUN_ID_SIZE + 2:
        raise _malformed(key, f"{RUN_ID_SIZE} bytes of run id, a tag and a user key at {position}")
    run_id = RunId(bytes=rest[:RUN_ID_SIZE])
    user_key = decode_user_key(rest[RUN_ID_SIZE + 1 :])
    return DecodedKey(namespace.for_run(run_id), tag_of(rest[RUN_ID_SIZE]), user_key)


def _decode_namespace(key: bytes) -> tuple[Namespace, int]:
    parts: list[str] = []
    position = 0
    for name in ("tenant", "app", "agent"):
        end = key.find(b"\x00", position, position + PART_SIZE_MAX + 1)
        if end < 0:
            raise _malformed(key, f"the {name}, ended by NUL, at {position}")
        try:
            text = key[position:end].decode()
        except UnicodeDecodeError:
            raise _malformed(key, f"the {name} in UTF-8 at {position}") from None
        if text == DEFAULT_PART:
            raise _malformed(key, f'the {name} "default" written as the empty string at {position}')
        parts.append(text or DEFAULT_PART)
        position = end + 1
    tenant, app, agent = parts
    return Namespace(tenant, app, agent), position


def _malformed(key: bytes, expected: str) -> CorruptionError:
    shown = key[:80].hex() + ("..." if len(key) > 80 else "")
    return CorruptionError(f"malformed key {shown}", expected=expected, details={"size": len(key)})


def successor(prefix: bytes) -> bytes | None:
    """The first byte string behind all that begin with `prefix`; None when there is none (all 0xFF)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """[start, end) of every stored key that begins with `prefix`, which holds at least a namespace."""
    end = successor(prefix)
    if end is None:  # a namespace contains NULs, so only a caller's mistake gets here
        raise InvalidArgumentError(
            "an empty or all-0xFF prefix has no end", hint="begin with Namespace.prefix"
        )
    return prefix, end
