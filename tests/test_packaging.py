"""What is installed under which name, and that every way of finding a module finds the same file."""

from __future__ import annotations

import importlib.metadata
import os
import pkgutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import pgce

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest there

MODULES = ["pgce", *(module.name for module in pkgutil.walk_packages(pgce.__path__, "pgce."))]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_table(repository, project):
    table = project["tool"]["setuptools"]["package-dir"]
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(table)
    for name, folder in table.items():
        assert (repository / folder / "__init__.py").is_file(), name


def test_the_table_and_the_import_agree(repository, project):
    for name, folder in project["tool"]["setuptools"]["package-dir"].items():
        file = importlib.import_module(name).__file__
        assert file is not None
        assert os.path.samefile(file, repository / folder / "__init__.py"), name


@pytest.mark.skipif(os.name == "nt", reason="git writes links as text files there")
def test_the_table_and_the_links_agree(repository, project):
    table = project["tool"]["setuptools"]["package-dir"]
    inside = {name.removeprefix("pgce."): folder for name, folder in table.items() if "." in name}
    links = {path.name: path for path in (repository / "pgce").iterdir() if path.is_symlink()}
    assert links.keys() == inside.keys()
    for name, link in links.items():
        assert os.readlink(link) == f"../{inside[name]}"  # relative: a clone may lie anywhere


def test_folders_stay_flat(repository):
    for name in ("agents", "envs"):
        nested = [path.parent for path in (repository / name).rglob("*.py")]
        assert set(nested) == {repository / name}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_a_name_of_the_standard_library(name):
    assert name.rpartition(".")[2] not in sys.stdlib_module_names


def test_types_are_published():
    assert resources.files("pgce").joinpath("py.typed").is_file()


def test_the_installed_version_is_the_package_version():
    assert importlib.metadata.version("pgce") == pgce.__version__


def test_importing_pgce_imports_no_torch():
    code = "import pgce, sys; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
