"""The tree, the wheel map and the configuration agree."""

import importlib
import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_in_the_wheel():
    folders = {"medssl", "medssl.cli", "medssl.recipes"}
    folders |= {f"medssl.{p.parent.name}" for p in (ROOT / "medssl").glob("*/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_the_command_line_is_inside_the_package():
    assert importlib.import_module("medssl.cli").main
    assert importlib.metadata.version("medssl") == PROJECT["project"]["version"]


def test_every_dependency_is_pinned_once():
    pins = dict(
        re.match(r"([A-Za-z0-9._-]+)==(\S+)", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + [
        one for name in extras if name != "bench" for one in extras[name]
    ]
    normal = {re.sub(r"[-_.]+", "-", k).lower() for k in pins}
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
        if name == "medssl":  # an extra of its own
            continue
        assert re.sub(r"[-_.]+", "-", name).lower() in normal, name


@pytest.mark.parametrize(
    "banned", ["torchvision", "lightning", "careamics", "lightly", "pylibjpeg-libjpeg", "SimpleITK"]
)
def test_what_must_never_be_a_dependency(banned):
    extras = PROJECT["project"]["optional-dependencies"]
    needed = PROJECT["project"]["dependencies"] + extras["test"]
    assert not any(re.match(rf"{banned}\b(?!-)", r, re.IGNORECASE) for r in needed)


def test_sub_packages_hold_a_docstring_and_nothing_else():
    import ast

    for path in (ROOT / "medssl").glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def test_importing_the_package_is_free():
    import subprocess
    import sys

    code = "import sys, medssl; print(sorted({'torch', 'numpy', 'pydicom'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_front_door_opens():
    import medssl

    assert len(medssl.__all__) <= 12
    for name in medssl.__all__:
        assert getattr(medssl, name) is not None
    with pytest.raises(AttributeError):
        medssl.nothing  # noqa: B018 (the look-up is the test)


def test_no_pickle_and_no_shell():
    for path in [*(ROOT / "medssl").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"torch\.load\(|import pickle|shell=True|allow_pickle=True", text), (
            path
        )
