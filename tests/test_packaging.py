"""What is installed is what is here: the package list, the wheel, and the wheel at work far from the source."""

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from recbole_prunerec import __version__

ROOT = Path(__file__).parent.parent
MAPPED = {  # a folder here, and in the wheel
    "recbole_prunerec": "recbole_prunerec",
    "baselines": "recbole_prunerec/baselines",
    "properties": "recbole_prunerec/properties",
}
USE = """
import sys
from importlib.resources import files
from pathlib import Path
import recbole_prunerec
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.shipped import names, properties
print(Path(recbole_prunerec.__file__).parent)
print(files("recbole_prunerec.properties"))
print(properties("backbone", "tiny")["hidden_size"], *names("preset"), load_arguments(["--preset=quick"]).settings.training_rows)
print(*[path for path in sys.path if Path(path or ".").resolve() == Path(sys.argv[1])])
"""

pytestmark = pytest.mark.timeout(600)


def expected_files(suffix: str) -> set[str]:
    """Where the wheel should hold every file of the source that ends in `suffix`."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in MAPPED.items()
        for path in (ROOT / folder).rglob(f"*{suffix}")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing is left in the source."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in MAPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


def test_the_package_list_is_the_tree():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    tree = {path.removesuffix("/__init__.py").replace("/", ".") for path in expected_files("__init__.py")}
    assert sorted(listed) == sorted(tree)
    folders = {str(Path(file).parent).replace("/", ".") for file in expected_files(".py")}
    assert folders == tree  # a folder without __init__.py would be missing


def test_the_wheel_holds_every_module_and_every_yaml(wheel):
    assert wheel.name == f"recbole_prunerec-{__version__}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = expected_files(".py") | expected_files(".yaml") | expected_files(".html") | {"recbole_prunerec/py.typed"}
    assert {name for name in expected if name.endswith(".yaml")} >= {
        "recbole_prunerec/properties/protocol.yaml",
        "recbole_prunerec/baselines/SLMRec.yaml",
    }
    assert held == expected


def test_the_wheel_works_away_from_the_source(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    code = f"import sys; sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]; sys.path.insert(0, {str(site)!r})\n" + USE
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT)], check=True, capture_output=True, text=True, cwd=elsewhere)
    package, yaml, values, source_on_path = done.stdout.split("\n")[:4]
    assert Path(package) == site / "recbole_prunerec"
    assert Path(yaml) == site / "recbole_prunerec" / "properties"
    assert values == "128 paper paper-16 quick smollm2 tiny 640"
    assert source_on_path == ""
