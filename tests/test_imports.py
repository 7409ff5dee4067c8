"""Who may import what: RecBole stays at the border, mistakes are answered without heavy libraries, and nothing runs code from a checkpoint."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import recbole_prunerec

PACKAGE = Path(recbole_prunerec.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
BORDER = {"quick_start.py", "loading.py", "config.py", "lookup.py", "trainer.py", "data/dataset.py"}
HEAVY = {"torch", "transformers", "recbole", "numpy", "pandas"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imported(source: str) -> set[str]:
    """The top-level names of all modules that a source imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {part.split(".")[0] for part in ast.unparse(node.args[0]).split("'")[1:2]}
    return found


def unpickling(source: str) -> list[str]:
    """Calls that would read or write a pickle: torch.load and save, numpy's with allow_pickle, pandas' read_pickle."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func): call for call in calls}
    found = [name for name in names if name in ("torch.load", "torch.save") or name.endswith(("read_pickle", "to_pickle"))]
    return found + [name for name, call in names.items() if any(keyword.arg == "allow_pickle" for keyword in call.keywords)]


def test_the_checks_see_what_they_look_for():
    source = "import recbole.config\ndef f():\n    from pickle import loads\n    importlib.import_module(f'torch.{x}')\n"
    assert imported(source) == {"recbole", "pickle", "torch"}
    assert unpickling("torch.load(x)\nnp.load(x, allow_pickle=True)\n") == ["torch.load", "np.load"]


@pytest.mark.parametrize("name", MODULES)
def test_only_the_border_imports_recbole(name):
    if name not in BORDER and not name.startswith("model/"):
        assert "recbole" not in imported(MODULES[name].read_text(encoding="utf-8"))


def test_the_border_is_where_it_is_said_to_be():
    assert set(MODULES) >= BORDER
    assert all("recbole" in imported(MODULES[name].read_text(encoding="utf-8")) for name in BORDER)


@pytest.mark.parametrize(
    "module",
    [
        "__main__",
        "arguments",
        "doctor",
        "evaluate",
        "recommend",
        "exits",
        "validation.validate",
        "settings",
        "shipped",
        "validation.sentences",
        "validation.on_disk",
        "errors",
        "prune.budget",
        "ranking.serving",
    ],
)
def test_mistakes_are_answered_without_heavy_imports(module):
    assert loaded_after(f"import recbole_prunerec.{module}") == set()


def test_arguments_are_loaded_without_heavy_imports():
    code = "from recbole_prunerec.arguments import load_arguments; load_arguments(['--model=SASRec,PruneRec', '--preset=quick', '--steps.2.heads=2'])"
    assert loaded_after(code) == set()
    assert loaded_after("import numpy") == {"numpy"}


def loaded_after(code: str) -> set[str]:
    """The heavy modules that a fresh process has loaded after `code`."""
    ending = f"; import sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    return set(subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", MODULES)
def test_no_code_from_a_checkpoint_and_no_pickles(name):
    source = MODULES[name].read_text(encoding="utf-8")
    words = {token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)}
    assert "trust_remote_code" not in source
    assert not PICKLES & imported(source)
    assert not PICKLES & words
    assert unpickling(source) == []
