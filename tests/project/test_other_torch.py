"""`tests/support/other_torch.py`: a library whose dependencies are missing is loaded with stubs in their place."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from tests.support.other_torch import add_missing_libraries

_VERSIONED = "int versioned_call(void) { return 1; }"
_PLAIN = "int plain_call(void) { return 2; }"
_USER = "int versioned_call(void); int plain_call(void); int sum(void) { return versioned_call() + plain_call(); }"


def compiled(folder: Path, name: str, source: str, *options: str) -> Path:
    """A shared library of this source."""
    file = folder / "source.c"
    file.write_text(source, encoding="utf-8")
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / name), str(file), f"-Wl,-soname,{name}", *options]
    subprocess.run(command, check=True)
    return folder / name


def test_missing_libraries_become_stubs(tmp_path: Path) -> None:
    """Symbols with a version and without one are there, and say that there is no device."""
    script = tmp_path / "versions"
    script.write_text("MAKER_1 { versioned_call; };", encoding="utf-8")
    versioned = compiled(tmp_path, "libmissing_versioned.so.1", _VERSIONED, f"-Wl,--version-script={script}")
    plain = compiled(tmp_path, "libmissing_plain.so.1", _PLAIN)
    user = compiled(tmp_path, "libuser.so", _USER, str(versioned), str(plain), f"-Wl,-rpath,{tmp_path}")
    versioned.unlink()
    plain.unlink()
    assert add_missing_libraries(tmp_path) == ["libmissing_plain.so.1", "libmissing_versioned.so.1"]
    assert ctypes.CDLL(str(user)).sum() == 200
    assert add_missing_libraries(tmp_path) == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".so", ".1", ".c", ""}
