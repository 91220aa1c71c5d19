"""The architecture as a test: arrows only go down, layers speak their own language, public names have docs.

Python is read with `ast`, Cython with regular expressions over the text without comments and strings.
"""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import occamdb

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ipc": {"ipc"},
    "engine": {"ipc", "engine"},
    "primitives": {"ipc", "engine", "primitives"},
    "plugins": {"plugins"},  # and the public names of occamdb
    "stress": {"ipc", "engine", "primitives", "plugins", "stress", "tools"},
    "tools": {"ipc", "engine", "primitives", "plugins", "stress", "tools"},
}
LAYERS = tuple(MAY_IMPORT)
# The packages of engine/, lowest first: each may import itself and those before it.
ENGINE_ORDER = ("model", "disk", "store", "log", "commit", "transaction", "remote", "coordinator", "client")
PUBLIC_NAMES: list[str] = list(getattr(occamdb, "__all__", ()))
BELOW_THE_PUBLIC_FACE = ("ipc", "engine", "primitives")

# Whole words of identifiers that a layer must not know.
FORBIDDEN_WORDS = {
    "ipc": {"transaction", "transactions", "txn", "commit", "snapshot", "key", "keys", "version", "versions"},
    "engine": {"kv", "kvstore", "event", "events", "eventlog", "statecell", "tracestore", "runindex"},
}
# What sounds alike but is another thing: the version of a memory layout; events of selectors, threads and event loops,
# with the eventfds that wake those; and the type tag of the keys that `db.get` and `db.put` work on, which is a number
# to the engine.
SOUNDS_ALIKE = {
    "ipc": re.compile(
        r"(.*_)?(layout|protocol|format|python)_versions?|version|version_info|key_?error", re.I
    ),
    "engine": re.compile(
        r"event_read|event_write|event|events|stop_event|KV|TAG_KV|kv_prefix"
        r"|.*event_?(fds?|links?|channel|loop|ring)(_.*)?|_?(note|signal|sleeping_by)_events?",
        re.I,
    ),
}


def files(layer: str, *suffixes: str) -> list[Path]:
    return sorted(
        p for p in (ROOT / layer).rglob("*") if p.suffix in suffixes and "__pycache__" not in p.parts
    )


ALL_PYTHON = [path for layer in LAYERS for path in files(layer, ".py", ".pyi")]
ALL_CYTHON = [path for layer in LAYERS for path in files(layer, ".pyx", ".pxd")]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> list[str]:
    """`engine/wal/reader.py` is occamdb.engine.wal.reader; an `__init__` is its package."""
    parts = ["occamdb", *path.relative_to(ROOT).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def absolute(path: Path, level: int, module: str | None) -> str:
    """The absolute name of a (relative) import in `path`."""
    if level == 0:
        return module or ""
    package = module_of(path) if path.stem == "__init__" else module_of(path)[:-1]
    base = package[: len(package) - (level - 1)]
    return ".".join([*base, module] if module else base)


def python_imports(path: Path) -> Iterator[tuple[str, int, int]]:
    """(absolute name, line, level) of every import, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, 0
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node.level, node.module)
            yield base, node.lineno, node.level
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, node.level


def cython_imports(path: Path) -> Iterator[tuple[str, int, int]]:
    """The same for import, cimport and `from … (c)import …` lines of Cython."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := re.match(r"\s*from\s+(\.*)([\w.]*)\s+c?import\s+(.*)", line):
            base = absolute(path, len(match[1]), match[2] or None)
            yield base, number, len(match[1])
            for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", match[3].split("#")[0]):
                yield f"{base}.{name}", number, len(match[1])
        elif match := re.match(r"\s*c?import\s+([\w.]+)", line):
            yield match[1], number, 0


@functools.cache
def imports(path: Path) -> list[tuple[str, int, int]]:
    return list(cython_imports(path) if path.suffix in (".pyx", ".pxd") else python_imports(path))


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "occamdb" and len(parts) > 1 and parts[1] in MAY_IMPORT else None


def own_layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def identifiers(path: Path) -> set[str]:
    """Every identifier a file uses, without what stands in strings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".pyx", ".pxd"):
        text = re.sub(r'(?s)""".*?"""|\'\'\'.*?\'\'\'', " ", text)
        text = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|#.*", " ", text)
        return set(re.findall(r"[A-Za-z_]\w*", text))
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        for field in ("id", "attr", "name", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str) and not isinstance(node, ast.alias):
                found.add(value)
    return found


def words(identifier: str) -> set[str]:
    """`commitVersion`, `commit_version` and `COMMIT_VERSION` are all {commit, version}."""
    return set(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier).lower().split("_")) - {""}


BELOW = [path for path in ALL_PYTHON + ALL_CYTHON if own_layer(path) in BELOW_THE_PUBLIC_FACE]


def offences(paths: list[Path], is_wrong: Callable[[Path, str, int], bool]) -> list[str]:
    """Every import for which `is_wrong(file, absolute name, level)` holds, as `file:line: name`."""
    assert paths
    return [
        f"{name_of(path)}:{line}: {module}"
        for path in paths
        for module, line, level in imports(path)
        if is_wrong(path, module, level)
    ]


def test_imports_only_go_down() -> None:
    def goes_up(path: Path, module: str, _level: int) -> bool:
        target = layer_of(module)
        return target is not None and target not in MAY_IMPORT[own_layer(path)]

    assert offences(ALL_PYTHON + ALL_CYTHON, goes_up) == []


def engine_rank(module: str) -> int | None:
    """The place of a module of the engine in ENGINE_ORDER; None for what lies outside."""
    match = re.match(r"occamdb\.engine\.(\w+)", module)
    return ENGINE_ORDER.index(match[1]) if match else None


def test_the_engine_consists_of_its_packages() -> None:
    """Each folder of engine/ has its place in the order, and no code lies beside the folders."""
    lying = {
        path.relative_to(ROOT / "engine") for path in ALL_PYTHON + ALL_CYTHON if own_layer(path) == "engine"
    }
    assert {path.parts[0] for path in lying} == {*ENGINE_ORDER, "__init__.py"}


def test_imports_inside_the_engine_only_go_down() -> None:
    """Cimports, imports inside functions and those for the type checker too; there is no exception."""

    def goes_up(path: Path, module: str, _level: int) -> bool:
        own, target = engine_rank(".".join(module_of(path))), engine_rank(module)
        return own is not None and target is not None and target > own

    assert offences([path for path in ALL_PYTHON + ALL_CYTHON if own_layer(path) == "engine"], goes_up) == []


def module_name(path: Path) -> str:
    """The module that a file is a part of; a .pyx and its .pyi are one."""
    return ".".join(module_of(path))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every set of modules that import one another, directly or through others (Tarjan's components, sorted)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_now: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        open_now.append(module)
        for target in sorted(edges[module]):
            if target not in index:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in open_now:
                lowest[module] = min(lowest[module], index[target])
        if lowest[module] == index[module]:
            position = open_now.index(module)
            component, open_now[position:] = open_now[position:], []
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return sorted(found)


def edges_inside(folder: Path) -> dict[str, set[str]]:
    """Which module of a folder imports which other one of it.

    A .pxd is a header: what it cimports tells the C compiler the shape of a struct, and no module is imported for it.
    """
    lying = [
        path
        for path in ALL_PYTHON + ALL_CYTHON
        if path.parent == folder and path.stem != "__init__" and path.suffix != ".pxd"
    ]
    edges: dict[str, set[str]] = {module_name(path): set() for path in lying}
    for path in lying:
        own = module_name(path)
        edges[own] |= {name for name, _, _ in imports(path) if name in edges and name != own}
    return edges


FOLDERS = sorted({path.parent for path in ALL_PYTHON + ALL_CYTHON})


@pytest.mark.parametrize("folder", FOLDERS, ids=[name_of(folder) for folder in FOLDERS])
def test_modules_of_a_package_do_not_import_one_another_in_a_circle(folder: Path) -> None:
    """Cimports, imports inside functions and those for the type checker count too."""
    assert circles(edges_inside(folder)) == []


def test_nothing_imports_a_bare_layer() -> None:
    """Write `occamdb.…` or a relative import."""
    everything = ALL_PYTHON + ALL_CYTHON
    assert offences(everything, lambda _, module, level: level == 0 and module.split(".")[0] in LAYERS) == []


def test_nothing_below_imports_the_public_face() -> None:
    """Import from the module that owns the name."""

    def is_face(_path: Path, module: str, level: int) -> bool:
        return module == "occamdb" or (level > 0 and not module.startswith("occamdb."))

    assert offences(BELOW, is_face) == []


def test_lower_layers_import_their_own_package_relatively() -> None:
    assert offences(BELOW, lambda _, module, level: level == 0 and module.startswith("occamdb.")) == []


@pytest.mark.parametrize("layer", sorted(FORBIDDEN_WORDS))
def test_each_layer_speaks_its_own_language(layer: str) -> None:
    wrong = []
    for path in files(layer, ".py", ".pyx", ".pxd"):
        for identifier in sorted(identifiers(path)):
            if not SOUNDS_ALIKE[layer].fullmatch(identifier) and (
                bad := words(identifier) & FORBIDDEN_WORDS[layer]
            ):
                wrong.append(f"{name_of(path)}: {identifier} says {sorted(bad)}")
    assert not wrong, "\n".join(wrong)


def test_primitives_never_touch_an_offset() -> None:
    for path in files("primitives", ".py"):
        wrong = [
            f"line {line}: {module}"
            for module, line, _ in imports(path)
            if module.split(".")[0] in {"mmap", "ctypes", "posix_ipc"}
            or (
                re.match(r"occamdb\.ipc(?!\.errors)\b", module)
                and module not in {"occamdb.ipc", "occamdb.ipc.errors"}
            )
            or re.match(r"occamdb\.engine\.(disk|store|log|commit|coordinator)\b", module)
        ]
        assert not wrong, f"{name_of(path)} reaches below the transaction: {wrong}"


def test_memory_orders_have_one_home() -> None:
    for path in ALL_CYTHON:
        if path.name != "_atomics.pxd":
            found = re.findall(
                r"__atomic_\w+|__ATOMIC_\w+|memory_order_\w+|__sync_\w+", path.read_text(encoding="utf-8")
            )
            assert not found, f"{name_of(path)} names memory orders itself: {found}"


def test_no_module_is_named_like_the_standard_library() -> None:
    taken = set(sys.stdlib_module_names)
    wrong = [name_of(p) for p in ALL_PYTHON + ALL_CYTHON if p.stem in taken and not p.stem.startswith("__")]
    assert not wrong


def test_every_compiled_module_python_can_use_has_a_stub() -> None:
    visible = re.compile(r"^(def|class|cpdef|cdef (final )?class) ", re.MULTILINE)
    wanted = [p for p in ALL_CYTHON if p.suffix == ".pyx" and visible.search(p.read_text(encoding="utf-8"))]
    assert [name_of(p) for p in wanted if not p.with_suffix(".pyi").exists()] == []


def test_every_module_says_what_it_owns() -> None:
    python = [path for path in ALL_PYTHON if path.suffix == ".py"]
    silent = [name_of(p) for p in python if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


def test_public_names_exist_and_are_documented() -> None:
    assert PUBLIC_NAMES, "occamdb names its public interface in __all__"
    undocumented = []
    for name in PUBLIC_NAMES:
        value = getattr(occamdb, name)
        if (inspect.isclass(value) or callable(value)) and not (inspect.getdoc(value) or "").strip():
            undocumented.append(name)
    assert not undocumented


def test_public_methods_are_documented() -> None:
    undocumented = []
    for name in PUBLIC_NAMES:
        value = getattr(occamdb, name)
        if not inspect.isclass(value):
            continue
        for attribute, member in vars(value).items():
            plain = inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
            if plain and not attribute.startswith("_") and not inspect.getdoc(getattr(value, attribute)):
                undocumented.append(f"{name}.{attribute}")
    assert not undocumented


def test_the_rules_catch_what_they_forbid() -> None:
    assert absolute(ROOT / "engine/wal.py", 1, "keys") == "occamdb.engine.keys"
    assert absolute(ROOT / "engine/wal.py", 2, "ipc.errors") == "occamdb.ipc.errors"
    assert absolute(ROOT / "engine/__init__.py", 1, None) == "occamdb.engine"
    assert absolute(ROOT / "engine/log/check.py", 2, "disk.files") == "occamdb.engine.disk.files"
    assert engine_rank("occamdb.engine.disk.files") == 1 and engine_rank("occamdb.ipc.errors") is None
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert words("commitVersion") == words("COMMIT_VERSION") == {"commit", "version"}
    assert not SOUNDS_ALIKE["ipc"].fullmatch("commit_version")
    assert SOUNDS_ALIKE["ipc"].fullmatch("LAYOUT_VERSION")
