"""The rules of the source tree as a program: the tree in, a sentence for each thing that breaks a rule out.

    python scripts/layout_rules.py [FOLDER]

They look at text and syntax tree only; nothing of the project is imported. Exceptions are in the tables,
each with its reason.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FIELDS = 12

LONG_FUNCTIONS: dict[str, str] = {
    "llm.py::start": "two thirds are the documentation of its options",
}
"""``file::function`` -> why it is longer than the limit."""

WIDE_DATACLASSES: dict[str, str] = {}
"""``file::class`` -> why it has more fields than the limit."""

STAGES: tuple[frozenset[str], ...] = (
    frozenset({"types", "errors", "config", "units"}),
    frozenset({"store", "formats", "quant"}),
    frozenset({"model", "backends", "sampling", "text", "engine", "reference"}),
    frozenset({"inputs", "answer", "creating"}),
    frozenset({"llm"}),
    frozenset({"perplexity", "measure"}),
    frozenset({"client"}),
    frozenset({"cli", "server"}),
    frozenset({"__main__"}),
)
"""A stage imports its own row and those above it here. The package's ``__init__`` may import all of them."""

HEAVY: dict[str, tuple[str, ...]] = {
    "torch": (
        "reference.py",
        "backends/torch_attention.py",
        "backends/torch_backend.py",
        "backends/torch_batch.py",
        "backends/torch_bounds.py",
        "backends/torch_cache.py",
        "backends/torch_choice.py",
        "backends/torch_compile.py",
        "backends/torch_decode.py",
        "backends/torch_experts.py",
        "backends/torch_model.py",
        "backends/torch_ops.py",
        "backends/torch_weights.py",
    ),
    "numpy": (
        "quant/",
        "sampling/",
        "model/",
        "backends/",
        "engine/",
        "formats/",
        "perplexity.py",
        "reference.py",
    ),
    "tokenizers": ("text/",),
    "jinja2": ("text/",),
    "rich": (),
    "prompt_toolkit": (),
    "httpx": (),
}
"""Who may import a slow library at module level. Inside a function the gates below are all that counts."""

PLAIN = ("engine/scheduler.py", "engine/blocks.py", "engine/sequence.py", "server/wire.py", "text/stream.py")
"""Decisions: plain Python that imports neither torch nor numpy, also not inside a function."""

GATES: dict[str, tuple[str, ...]] = {
    "httpx": ("store/fetch.py",),
    "requests": (),
    "urllib.request": (),
    "urllib3": (),
    "http.client": ("client.py",),  # talks to a server of ours, and to the address that the user names only
    "huggingface_hub": (),
    "socket": (),
    "ftplib": (),
    "subprocess": ("store/wheels.py", "backends/native/build.py"),
    "tarfile": (),
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "dill": (),
    "joblib": (),
    "transformers": (),
    "gguf": (),
    "xllamacpp": (),
    "llama_cpp": (),
}
"""Who may import what opens the network, starts processes, runs code out of data, or is for tests."""

REMOVES_FILES: dict[str, str] = {
    "store/removal.py": "deletes what rm is asked to, and only that",
    "store/blobs.py": "finishes or drops an upload, and gives it to a model",
    "store/files.py": "replaces a file of the store by a whole new one",
    "store/registry.py": "puts a damaged register aside",
    "store/parts.py": "the unfinished file of a download, and its map",
    "store/download.py": "clears the scratch folder of wheels",
    "store/wheels.py": "clears the scratch folder that the store gives it",
    "backends/native/build.py": "replaces a compiled library",
    "formats/gguf_write.py": "leaves no half-written file",
}
REMOVING_CALLS = frozenset(
    {"unlink", "rmtree", "rmdir", "rename", "removedirs", "symlink", "symlink_to", "link"}
)
STORE_FILES = frozenset({"store/store.py"})
STORE_WORDS = ("XDG_DATA_HOME", "nanollama/models")
DANGEROUS_NAMES = frozenset({"eval", "exec", "compile", "__import__"})
DANGEROUS_ATTRIBUTES: dict[str, str] = {
    "extractall": "no archive is unpacked",
    "unpack_archive": "no archive is unpacked",
    "torch.load": "no pickled weights",
    "yaml.load": "no objects out of YAML",
    "os.system": "no shell",
    "os.popen": "no shell",
    "jinja2.Environment": "templates run in the sandbox only",
    "jinja2.Template": "templates run in the sandbox only",
}
DANGEROUS_KEYWORDS = frozenset({"shell", "trust_remote_code", "allow_pickle"})
PLACEHOLDERS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK|NotImplementedError|not implemented|for now|placeholder|stub|coming soon)\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: its path below the package, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def stage(self) -> str:
        return self.path.partition("/")[0].removesuffix(".py")


Rule = Callable[[Source], Iterator[str]]


def size_rule(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"has {lines} lines, more than {MAX_FILE_LINES}: it has two jobs"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES and f"{source.path}::{node.name}" not in LONG_FUNCTIONS:
                yield f"{node.name} has {length} lines, more than {MAX_FUNCTION_LINES}"
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            fields = sum(isinstance(item, ast.AnnAssign) for item in node.body)
            if fields > MAX_FIELDS and f"{source.path}::{node.name}" not in WIDE_DATACLASSES:
                yield f"{node.name} has {fields} fields, more than {MAX_FIELDS}"


def docstring_rule(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield "has no module docstring"


def stage_rule(source: Source) -> Iterator[str]:
    if source.path == "__init__.py":
        return
    level = _level(source.stage)
    if level is None:
        yield f"belongs to no stage: add {source.stage!r} to STAGES in scripts/layout_rules.py"
        return
    for line, name in imports(source.tree):
        if name == ".":
            yield f"line {line} has a relative import: write the full name, so that it can be searched for"
        parts = name.split(".")
        if parts[0] != "nanollama":
            continue
        stage = parts[1] if len(parts) > 1 else "nanollama"
        other = _level(stage)
        if other is None or other > level:
            yield f"line {line} imports {name}, which is not below it"


def heavy_rule(source: Source) -> Iterator[str]:
    for line, name in imports(source.tree, everywhere=False):
        allowed = HEAVY.get(name.partition(".")[0])
        if allowed is not None and not _listed(source.path, allowed):
            yield f"line {line} imports {name} at module level, which makes starting slow"
    if source.path in PLAIN:
        for line, name in imports(source.tree):
            if name.partition(".")[0] in {"torch", "numpy"}:
                yield f"line {line} imports {name}, but decisions are plain Python"


def gate_rule(source: Source) -> Iterator[str]:
    for line, name in imports(source.tree):
        for module, allowed in GATES.items():
            if (name == module or name.startswith(module + ".")) and source.path not in allowed:
                yield f"line {line} imports {name}, which only {' and '.join(allowed) or 'nobody'} may"


def store_rule(source: Source) -> Iterator[str]:
    """Who may remove or move files, and who knows where the store lies."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and source.path not in REMOVES_FILES:
            called = _dotted(node.func)
            if called.rpartition(".")[2] in REMOVING_CALLS or called in {
                "os.replace",
                "os.remove",
                "shutil.move",
            }:
                yield f"line {node.lineno} calls {called}, which removes or moves files"
        if isinstance(node, ast.Constant) and source.path not in STORE_FILES and _says(node, STORE_WORDS):
            yield f"line {node.lineno} says where the store lies, which only store/store.py knows"


def _says(node: ast.Constant, words: tuple[str, ...]) -> bool:
    return isinstance(node.value, str) and any(word in node.value for word in words)


def danger_rule(source: Source) -> Iterator[str]:
    """No code out of data, no shell, no unpacking."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in DANGEROUS_NAMES:
                yield f"line {node.lineno} calls {node.func.id}"
            for keyword in node.keywords:
                constant_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in DANGEROUS_KEYWORDS and not constant_false:
                    yield f"line {node.lineno} passes {keyword.arg}"
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            for name, reason in DANGEROUS_ATTRIBUTES.items():
                if dotted == name or dotted.endswith("." + name):
                    yield f"line {node.lineno} uses {name}: {reason}"


def placeholder_rule(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := PLACEHOLDERS.search(line):
            yield f"line {number} says {match[0]!r}: finish it, or leave it out"


RULES: tuple[Rule, ...] = (
    size_rule,
    docstring_rule,
    stage_rule,
    heavy_rule,
    gate_rule,
    store_rule,
    danger_rule,
    placeholder_rule,
)


def imports(tree: ast.Module, *, everywhere: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, ``.`` for a relative one.

    With ``everywhere`` false only those that run when the module is imported.
    """
    for node in ast.walk(tree) if everywhere else _running_with_module(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "."
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _running_with_module(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running_with_module(child)


def _level(stage: str) -> int | None:
    return next((level for level, names in enumerate(STAGES) if stage in names), None)


def _listed(path: str, allowed: tuple[str, ...]) -> bool:
    return any(path == entry or (entry.endswith("/") and path.startswith(entry)) for entry in allowed)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain; what is not a name in it is left out."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def import_cycles(sources: list[Source]) -> Iterator[str]:
    """Modules that need each other while they are imported."""
    names = {_module_name(source.path): source for source in sources}
    edges: dict[str, set[str]] = {}
    for name, source in names.items():
        targets = {target for _, target in imports(source.tree, everywhere=False)}
        edges[name] = {t for full in targets for t in (full, full.rpartition(".")[0]) if t in names} - {name}
        edges[name].discard("nanollama")
    reported: set[frozenset[str]] = set()
    for start in sorted(edges):
        cycle = _path_back(start, edges)
        if cycle and frozenset(cycle) not in reported:
            reported.add(frozenset(cycle))
            yield f"{names[start].path}: imports itself by way of {' -> '.join(cycle)}"


def _path_back(start: str, edges: dict[str, set[str]]) -> list[str]:
    """The shortest way from ``start`` to itself, or an empty list."""
    ways = [[target] for target in sorted(edges[start])]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        if way[-1] == start:
            return way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, target] for target in sorted(edges[way[-1]])]
    return []


def _module_name(path: str) -> str:
    return ".".join(
        ["nanollama", *path.removesuffix(".py").removesuffix("__init__").strip("/").split("/")]
    ).rstrip(".")


def read_sources(package: Path) -> list[Source]:
    """All Python files below ``package``, sorted by path."""
    sources = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        sources.append(Source(path.relative_to(package).as_posix(), text, ast.parse(text)))
    return sources


def kernel_problems(package: Path) -> Iterator[str]:
    """The rules for C++; clang-format keeps the rest."""
    for path in sorted([*package.rglob("*.h"), *package.rglob("*.cpp")]):
        name, text = path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")
        if not text.startswith("// "):
            yield f"{name}: does not begin with a comment that says what it is for"
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            yield f"{name}: has {lines} lines, more than {MAX_FILE_LINES}: it has two jobs"


def violations(package: Path) -> list[str]:
    """One sentence for each place in ``package`` that breaks a rule."""
    sources = read_sources(package)
    found = [f"{source.path}: {problem}" for source in sources for rule in RULES for problem in rule(source)]
    return [*found, *import_cycles(sources), *kernel_problems(package)]


def main() -> int:
    default = Path(__file__).resolve().parent.parent / "src" / "nanollama"
    found = violations(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
    print("\n".join(found) if found else "layout rules: all hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
