"""What is given to users: the wheel, the source distribution and the container images."""

from __future__ import annotations

import configparser
import email
import email.message
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "torch2engine"
# What a build reads: `pip install .` in the container images has no more.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "torch2engine")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist'); build_meta.build_sdist('dist')"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution, built of nothing but `SOURCES`."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    """The wheel's METADATA."""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_string(wheel.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    """Every file of the package, with the mark that it is typed and the licence; no tests, examples or benchmarks."""
    wheel = zipfile.ZipFile(distributions[0])
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(REPOSITORY))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert "torch2engine/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_wheel_declares_the_command_and_the_backend(distributions: tuple[Path, Path]) -> None:
    """The shell finds `torch2engine`, and torch.compile the backend of that name."""
    wheel = zipfile.ZipFile(distributions[0])
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())
    assert dict(entries["console_scripts"]) == {"torch2engine": "torch2engine.cli.entry:main"}
    assert dict(entries["torch_dynamo_backends"]) == {"torch2engine": "torch2engine:compile_backend"}


def test_metadata_says_what_the_readme_says(distributions: tuple[Path, Path]) -> None:
    """The Python version and the extras of the install lines; the README is the long description."""
    data = metadata(zipfile.ZipFile(distributions[0]))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    least = re.search(r"Python (3\.\d+) or later", readme)
    assert least is not None
    assert data["Requires-Python"] == f">={least[1]}"
    used = {extra for found in re.findall(r'"\.\[([\w,]+)\]"', readme) for extra in found.split(",")}
    assert used <= set(data.get_all("Provides-Extra", []))
    assert str(data.get_payload()).strip() == readme.strip()


def test_source_distribution_builds_alone(distributions: tuple[Path, Path]) -> None:
    """It has what a build reads."""
    with tarfile.open(distributions[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "torch2engine/py.typed", "torch2engine/cli/app.py"} <= names


def test_container_images_install_as_the_readme_says() -> None:
    """Each line that pip runs in the Dockerfile stands in the README, and each image copies what a build reads."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    lines = {line.partition("  #")[0].strip() for line in readme.splitlines() if line.startswith("pip install")}
    stages = re.split(r"^FROM ", dockerfile, flags=re.M)[1:]
    assert [stage.splitlines()[0].rpartition(" AS ")[2] for stage in stages] == ["cpu", "gpu"]
    for stage in stages:
        (command,) = re.findall(r"^RUN (.+)$", stage, re.M)
        assert command in lines
        copied = {word for line in re.findall(r"^COPY (.+)$", stage, re.M) for word in line.split()[:-1]}
        assert copied == set(SOURCES)
    kept = re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(encoding="utf-8"), re.M)
    assert set(kept) == set(SOURCES)


def test_extras_are_quoted_wherever_an_install_line_stands() -> None:
    """zsh reads `[ ]` itself, so that an unquoted extra is an error there: pages, code and error texts quote it."""
    folders = ("docs", "torch2engine", "examples", "tests", ".github")
    files = [
        path for name in folders for path in (REPOSITORY / name).rglob("*") if path.suffix in (".md", ".py", ".ipynb")
    ]
    bare = re.compile(r"(?<!['\"])\b(?:torch2engine|\.)\[[a-z{]")
    texts = {path: path.read_text(encoding="utf-8") for path in [*files, *REPOSITORY.glob("*.md")]}
    lines = {
        str(path.relative_to(REPOSITORY)): line
        for path, text in texts.items()
        for line in text.splitlines()
        if "pip install" in line and bare.search(line)
    }
    assert lines == {}
    assert bare.search("pip install " + "torch2engine[rtx]")
