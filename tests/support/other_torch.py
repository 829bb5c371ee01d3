"""An environment with another version of torch, beside `.venv`, whose other packages it shares.

Enters: a version, and the folder to make. Leaves: a virtual environment in which that torch is imported. Separate
because PyPI's wheels of torch need CUDA's libraries, gigabytes that no test on a CPU calls: stubs take their place.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sysconfig
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["add_missing_libraries", "make_environment"]

# What every function of a stub returns: CUDA's "no device".
_NO_DEVICE = 100
_TEXTS = ("ErrorString", "ErrorName")  # of functions that return a text
_LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class _Library:
    """What a shared library asks of others.

    Args:
        needed: the names of the libraries that it needs.
        owners: {version of a symbol: the needed library that has it}.
        defined: the symbols that it has.
        undefined: the symbols that it needs, with "@VERSION" where they have one.
    """

    needed: frozenset[str]
    owners: Mapping[str, str]
    defined: frozenset[str]
    undefined: frozenset[str]


def make_environment(version: str, folder: Path) -> None:
    """Make a virtual environment with this version of torch, and the running one's other packages.

    Args:
        version: such as "2.11.0"; pip takes it from where it is set up to look.
        folder: of the environment; what is in it is replaced.
    """
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-deps", f"torch=={version}")
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Behind the environment's own packages; `addsitedir` reads the editable installation of torch2engine too.
    shared = sysconfig.get_path("purelib")
    (packages / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n", encoding="utf-8")
    add_missing_libraries(packages / "torch" / "lib")
    found = _run(python, "-c", "import torch; print(torch.__version__)").strip()
    if found.partition("+")[0] != version:
        raise SystemExit(f"torch in {folder}: got {found}; expected {version}; remove the folder, and make it anew")


def add_missing_libraries(folder: Path) -> list[str]:
    """Put stubs beside the libraries in a folder, for those that they need and that this machine lacks.

    Returns:
        the names of the stubs.
    """
    libraries = [_read(path) for path in sorted(folder.glob("lib*.so*"))]
    present = {path.name for path in folder.glob("lib*.so*")} | _system_libraries()
    missing = sorted({name for library in libraries for name in library.needed} - present)
    owners = {version: owner for library in libraries for version, owner in library.owners.items()}
    defined = {name for library in libraries for name in library.defined}
    symbols = {symbol for library in libraries for symbol in library.undefined}
    contents: dict[str, set[str]] = {name: set() for name in missing}
    for symbol in symbols:
        name, _, version = symbol.partition("@")
        if name in defined:
            continue
        if not version and missing:  # whichever library has it: one name is enough
            contents[missing[0]].add(symbol)
        elif owners.get(version) in contents:
            contents[owners[version]].add(symbol)
    for name in missing:
        _compile_stub(folder / name, contents[name])
    return missing


def _read(path: Path) -> _Library:
    names = _run("nm", "-D", str(path)).splitlines()
    by_kind = [line.split()[-2:] for line in names]
    owners: dict[str, str] = {}
    owner = ""
    for file, version in re.findall(r"File: (\S+)|Name: (\S+)  Flags", _run("readelf", "-VW", str(path))):
        owner = file or owner
        if version:
            owners[version] = owner
    return _Library(
        needed=frozenset(re.findall(r"\(NEEDED\).*\[(.+?)\]", _run("readelf", "-dW", str(path)))),
        owners=owners,
        defined=frozenset(name.partition("@")[0] for kind, name in by_kind if kind not in ("U", "w", "v")),
        undefined=frozenset(name.replace("@@", "@") for kind, name in by_kind if kind == "U"),
    )


def _system_libraries() -> set[str]:
    """The libraries that the loader finds by itself."""
    return {*re.findall(r"^\s+(\S+) \(", _run("/sbin/ldconfig", "-p"), re.MULTILINE), _LOADER}


def _compile_stub(path: Path, symbols: Iterable[str]) -> None:
    by_version: dict[str, list[str]] = {}
    for symbol in sorted(symbols):
        name, _, version = symbol.partition("@")
        by_version.setdefault(version, []).append(name)
    source = path.with_suffix(".c")
    lines = [_function(name) for names in by_version.values() for name in names]
    source.write_text("".join(lines), encoding="utf-8")
    script = path.with_suffix(".map")
    versions = [f"{version} {{ {'; '.join(names)}; }};\n" for version, names in by_version.items() if version]
    script.write_text("".join(versions), encoding="utf-8")
    options = [f"-Wl,--version-script={script}"] if versions else []
    _run(
        "gcc",
        "-w",
        "-fno-builtin",
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(path),
        f"-Wl,-soname,{path.name}",
        *options,
    )
    source.unlink()
    script.unlink()


def _function(name: str) -> str:
    """A function that fails, or tells that there is no device."""
    if name.endswith(_TEXTS):
        return f'const char *{name}(void) {{ return "no CUDA device"; }}\n'
    return f"int {name}(void) {{ return {_NO_DEVICE}; }}\n"


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    make_environment(chosen.version, chosen.folder)


if __name__ == "__main__":
    main()
