"""Who may import whom, and other rules that hold for every file; read from the syntax trees, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("distill", "students", "teachers", "tools", "tests", "recipes")
LEAVES = (
    "distill.outputs",
    "distill.errors",
    "distill.randomness",
    "distill.files",
    "distill.weights",
    "distill.labels",
)
PLUGINS = ("students", "teachers")
# A run of ours teaches; several teachers teach together.
MAY_ALSO = {("teachers.student", "distill.checkpoint"), ("teachers.ensemble", "distill.plugins")}
MAY_PRINT = ("distill.run_log", "distill.command")
LONGEST = 60  # lines of a function


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in OURS[:3] for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in FILES.items()}
LIBRARY = [name for name in TREES if name.split(".")[0] == "distill"]
EVERY = pytest.mark.parametrize("name", list(TREES))


def is_main_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


ENTRIES = [name for name in LIBRARY if any(is_main_check(node) for node in TREES[name].body)]


def imports(name: str) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in the file: `from distill import plugins` is distill.plugins."""
    for node in ast.walk(TREES[name]):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [item if item in TREES else str(node.module) for item in whole]
        yield from (item for item in found if item.split(".")[0] in OURS)


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_look_at() -> None:
    assert set(LEAVES) <= set(TREES)
    assert {"distill.train", "distill.cache", "distill.probe", "distill.cli"} <= set(ENTRIES)
    assert "distill.checkpoint" in imports("teachers.student")
    assert "distill.plugins" in imports("distill.recipe")


@EVERY
def test_the_direction_of_imports(name: str) -> None:
    found = set(imports(name))
    family = name.split(".")[0]
    assert not found & set(ENTRIES), "nobody imports an entry file"
    assert "tests" not in {item.split(".")[0] for item in found}
    if name in LEAVES:
        assert not found, "a leaf imports nothing of ours"
    if family in PLUGINS:
        helpers = {item for item in TREES if item.startswith(f"{family}._")}
        allowed = {*LEAVES, *helpers} | {item for module, item in MAY_ALSO if module == name}
        assert found <= allowed, "a plug-in imports leaves (distill.outputs and the like) and underscored neighbours"
    if family == "distill":
        assert {item.split(".")[0] for item in found} <= {"distill"}, "the library reaches plug-ins by name alone"


def test_outputs_needs_torch_only() -> None:
    tree = TREES["distill.outputs"]
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    outside = {str(module).split(".")[0] for module in modules} - sys.stdlib_module_names
    assert outside == {"torch"}


@pytest.mark.parametrize("name", LIBRARY)
def test_only_plugins_names_the_plug_in_folders(name: str) -> None:
    texts = {node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)}
    assert name == "distill.plugins" or not texts & set(PLUGINS)


def test_the_package_itself_imports_nothing() -> None:
    assert [type(node) for node in TREES["distill"].body] == [ast.Expr]  # its docstring


@pytest.mark.parametrize("name", LIBRARY)
def test_no_module_hides_one_of_the_standard_library(name: str) -> None:
    """accelerate puts the folder of a started file first on the path."""
    if name.startswith("distill.clips.sources."):
        return  # called what recipes call it, e.g. csv; no entry stands beside it
    assert FILES[name].stem not in sys.stdlib_module_names
    assert name.split(".")[-1] not in sys.stdlib_module_names


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_thin(name: str) -> None:
    """A docstring, the lines about the path, one import, main, and the call; the same in every entry."""
    document, path, imported, main, call = TREES[name].body
    assert isinstance(document, ast.Expr)
    assert ast.unparse(path) == (
        "if not __package__:\n    import sys\n    from pathlib import Path\n"
        "    sys.path[0] = str(Path(__file__).resolve().parents[1])"
    )
    assert isinstance(imported, ast.ImportFrom)
    assert isinstance(main, ast.FunctionDef)
    assert main.name == "main"
    assert ast.unparse(call) == "if __name__ == '__main__':\n    raise SystemExit(main())"


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_speaks_through_the_log(name: str) -> None:
    printed = [node.lineno for function, node in calls(name) if function in ("print", "sys.stdout.write")]
    assert name in MAY_PRINT or not printed


@EVERY
def test_functions_are_short(name: str) -> None:
    functions = (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {function: lines for function, lines in lengths.items() if lines > LONGEST} == {}


@EVERY
def test_files_are_short_and_say_what_they_are(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 400
    assert ast.get_docstring(TREES[name])


@EVERY
def test_nothing_is_unpickled(name: str) -> None:
    for function, node in calls(name):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last = function.split(".")[-1]
        assert function not in ("pickle.load", "pickle.loads", "joblib.load", "torch.hub.load", "eval", "exec")
        assert last != "load" or function != "torch.load" or given.get("weights_only") == "True", f"line {node.lineno}"
        assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        assert given.get("trust_remote_code", "False") == "False", f"line {node.lineno}"
    assert not {"pickle", "dill", "joblib", "yaml"} & set(plain_imports(name))


def plain_imports(name: str) -> Iterator[str]:
    """YAML is read through OmegaConf alone: PyYAML reads 3e-4 as text. The names of errors are harmless."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} - {"YAMLError", "UnpicklingError"}:
            yield str(node.module).split(".")[0]
