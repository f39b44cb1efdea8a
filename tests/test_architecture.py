"""House rules that no linter knows. Each rule is a function over parsed sources, and each is shown to catch its fault."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NAMES_OF_TIME = re.compile(r"(^|_)(timeout|ttl|delay|duration|deadline|elapsed|latency|pause|grace)$")

Rule = Callable[[ast.Module, str], Iterator[str]]


def no_pickle(tree: ast.Module, path: str) -> Iterator[str]:
    """Nothing is read or written that can run code when it is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
        ):
            names = ["pickle"] if node.attr in {"load", "save"} else []
        else:
            continue
        yield from (
            f"{path}:{node.lineno} uses {name}" for name in names if name.partition(".")[0] in PICKLES
        )


def no_keys_command(tree: ast.Module, path: str) -> Iterator[str]:
    """Redis' KEYS walks the whole keyspace. `mapping.keys()` takes no argument, `redis.keys(pattern)` does."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        is_pattern = node.func.attr == "keys" and bool(node.args or node.keywords)
        first = node.args[0] if node.args else None
        is_raw = (
            node.func.attr == "execute_command" and isinstance(first, ast.Constant) and first.value == "KEYS"
        )
        if is_pattern or is_raw:
            yield f"{path}:{node.lineno} calls KEYS"


def settings_alone_read_the_environment(tree: ast.Module, path: str) -> Iterator[str]:
    """Settings are read once, in `app/settings`, and passed on as values."""
    if path.startswith("app/settings/"):
        return
    for node in ast.walk(tree):
        found = (
            (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"})
            or (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and bool({alias.name for alias in node.names} & {"environ", "getenv", "environb"})
            )
            or (
                isinstance(node, ast.ClassDef)
                and any(isinstance(base, ast.Name) and base.id == "BaseSettings" for base in node.bases)
            )
        )
        if found:
            yield f"{path}:{getattr(node, 'lineno', 0)} reads the environment"


def short_functions(tree: ast.Module, path: str) -> Iterator[str]:
    """No function is longer than a screen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno} {node.name} has {num_lines} lines, at most {MAX_FUNCTION_LINES}"


def times_have_units(tree: ast.Module, path: str) -> Iterator[str]:
    """A name of a time says its unit: `timeout_s`, not `timeout`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if NAMES_OF_TIME.search(name.lower()):
            yield f"{path}:{node.lineno} {name} has no unit"


def no_global_statement(tree: ast.Module, path: str) -> Iterator[str]:
    """No function rebinds a module's variable: state lives in objects that somebody opened and closes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{path}:{node.lineno} has a global statement"


RULES: tuple[Rule, ...] = (
    no_pickle,
    no_keys_command,
    settings_alone_read_the_environment,
    short_functions,
    times_have_units,
    no_global_statement,
)
FAULTS: dict[Rule, tuple[str, ...]] = {
    no_pickle: (
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib.memory",
        "torch.load(p)",
    ),
    no_keys_command: ("redis.keys('*')", "redis.keys(pattern='*')", "redis.execute_command('KEYS', '*')"),
    settings_alone_read_the_environment: (
        "os.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ",
        "class Mine(BaseSettings): pass",
    ),
    short_functions: ("def f():\n" + "    pass\n" * MAX_FUNCTION_LINES,),
    times_have_units: (
        "def f(timeout): pass",
        "delay = 3",
        "self.job_ttl = 4",
        "class A:\n    deadline: int = 0",
    ),
    no_global_statement: ("def f():\n    global cache\n    cache = 1",),
}
LAWFUL = """
import os, torch
def f(timeout_s: float, mapping: dict) -> list:
    delay_ms = 3
    self.job_ttl_s = 4
    return [*mapping.keys(), os.getpid(), torch.ones(1)]
"""


def sources() -> list[Path]:
    """Every Python file of the two packages."""
    found = [path for package in ("app", "sparke_engine") for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 80, "the packages have moved"
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_packages_keep_the_rule(rule: Rule):
    """No file of the packages breaks it."""
    broken = [
        fault
        for path in sources()
        for fault in rule(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
    ]
    assert broken == []


@pytest.mark.parametrize(("rule", "fault"), [(rule, fault) for rule in RULES for fault in FAULTS[rule]])
def test_the_rule_catches_its_fault(rule: Rule, fault: str):
    """Each rule sees each fault that it is there for."""
    assert list(rule(ast.parse(fault), "app/somewhere.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_lets_lawful_code_be(rule: Rule):
    """What only looks like a fault is none."""
    assert list(rule(ast.parse(LAWFUL), "app/somewhere.py")) == []


def test_files_are_short():
    """No file of the packages has more lines than one can keep in mind."""
    long = {
        path.relative_to(ROOT).as_posix(): num_lines
        for path in sources()
        if (num_lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_scripts_never_walk_the_keyspace():
    """No Lua script calls KEYS, FLUSHALL or FLUSHDB, nor XDEL, which makes a group's lag unknown: memories have no groups."""
    scripts = sorted((ROOT / "app").rglob("*.lua"))
    assert len(scripts) > 10
    calls = {
        (path.relative_to(ROOT / "app").as_posix(), command.upper())
        for path in scripts
        for command in re.findall(r"redis\.p?call\(\s*['\"](\w+)['\"]", path.read_text(encoding="utf-8"))
    }
    assert ("jobs/commit.lua", "XADD") in calls
    assert not {pair for pair in calls if pair[1] in {"KEYS", "FLUSHALL", "FLUSHDB"}}
    deleting = {path for path, command in calls if command == "XDEL"}
    assert deleting == {f"memory/{name}.lua" for name in ("common", "discard", "forget", "fork_drop")}


def test_every_test_says_what_it_shows():
    """Every test of the suite has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_imports_follow_the_layers():
    """import-linter keeps every contract of pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


@pytest.mark.parametrize("module", ["app.http.app", "app.http.process.main", "app.serve", "app.cli"])
def test_the_api_loads_no_torch(module: str):
    """In a fresh process, importing what an API process runs loads nothing heavy."""
    code = (
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'faiss', 'sparke_engine'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr
