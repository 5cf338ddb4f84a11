"""Package managers and compilers on the mount: pip in a venv, npm, make. No network: what they install is made here."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.mount.hosts import Host
from tests.programs.support import LONG_S, here_and_elsewhere, run, same
from tests.tree import Entry, tree

# ---------------------------------------------------------------- pip

MODULES = 40
WHEEL = "hello_mount-1.0-py3-none-any.whl"


def wheel(folder: Path) -> Path:
    """A package with a command, forty modules, and a file of data."""
    files = {
        "hello_mount/__init__.py": "def main() -> None:\n    print('hello from', __name__)\n",
        "hello_mount/data/text.txt": "data\n" * 1000,
        "hello_mount-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hello-mount\nVersion: 1.0\n",
        "hello_mount-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "hello_mount-1.0.dist-info/entry_points.txt": "[console_scripts]\nhello = hello_mount:main\n",
    }
    files |= {f"hello_mount/module_{number}.py": f"NUMBER = {number}\n" for number in range(MODULES)}
    record = "hello_mount-1.0.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in (*files, record))
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return folder / WHEEL


def test_pip_in_a_venv(host: Host, tmp_path: Path) -> None:
    """A venv is made, pip installs a wheel into it, its command runs, here and elsewhere, where it is uninstalled again.

    The long form has pip itself inside the venv: a thousand files.
    """
    venv = host.path / "venv"
    python = venv / "bin/python"
    pip: tuple[str | Path, ...] = (python, "-m", "pip")
    run(sys.executable, "-m", "venv", *(() if LONG_S else ("--without-pip",)), venv, PYTHONPATH="")
    if not LONG_S:
        pip = (sys.executable, "-m", "pip", "--python", python)
    pip = (*pip, "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "install", "--no-index", "-q", wheel(tmp_path), PYTHONPATH="")
    found = []
    for _ in here_and_elsewhere(host):
        found.append(tree(venv))
        assert run(venv / "bin/hello", PYTHONPATH="") == "hello from hello_mount\n"
        assert run(*pip, "show", "-f", "hello-mount", PYTHONPATH="").count("/module_") == 2 * MODULES
    assert found[0] == found[1]
    run(*pip, "uninstall", "-q", "-y", "hello-mount", PYTHONPATH="")
    assert [name for name in tree(venv) if "hello" in name] == []


# ---------------------------------------------------------------- npm


def package(folder: Path) -> Path:
    """A tarball of a package with a command."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    manifest = {"name": "hello-mount", "version": "1.0.0", "main": "index.js", "bin": {"hello": "bin/hello.js"}}
    (folder / "package.json").write_text(json.dumps(manifest))
    (folder / "index.js").write_text("module.exports = require('./lib/0.js') + 1;\n")
    (folder / "bin/hello.js").write_text("#!/usr/bin/env node\nconsole.log('hello', require('../index.js'));\n")
    for number in range(40):
        (folder / f"lib/{number}.js").write_text(f"module.exports = {number};\n")
    run("npm", "pack", "--silent", "--offline", cwd=folder, npm_config_cache=str(folder.parent / "packing"))
    return folder / "hello-mount-1.0.0.tgz"


def npm(root: Path, *arguments: str) -> str:
    """With its cache on the mount too: it is full of temporary names, renames and links."""
    quiet = ("--offline", "--no-audit", "--no-fund", "--no-update-notifier")
    return run("npm", *arguments, *quiet, cwd=root / "app", npm_config_cache=str(root / "cache"))


@pytest.mark.program("npm")
def test_npm(host: Host, plain: Path, tmp_path: Path) -> None:
    """A tarball is installed and runs; node_modules is that of a plain disk; elsewhere `npm ci` makes it again."""
    tarball = package(tmp_path / "package")
    for root in (plain, host.path):
        (root / "app").mkdir()
        (root / "app/package.json").write_text('{"name": "app", "version": "1.0.0"}')
        run("cp", tarball, root / "app/hello.tgz")
        npm(root, "install", "./hello.tgz")

    def modules(root: Path) -> dict[str, Entry]:
        return tree(root / "app/node_modules")

    for _ in here_and_elsewhere(host):
        same(modules(plain), modules(host.path))
        assert npm(host.path, "ls", "--parseable").count("node_modules") == 1
        assert run(host.path / "app/node_modules/.bin/hello") == "hello 1\n"
    npm(host.path, "ci")
    same(modules(plain), modules(host.path))


# ---------------------------------------------------------------- make

PARTS = 6
MAKEFILE = """
OBJECTS := main.o {objects}
program: $(OBJECTS) libparts.a
\t$(CC) -o $@ main.o -L. -lparts
libparts.a: {objects}
\t$(AR) rcs $@ $^
%.o: %.c parts.h
\t$(CC) -g -O1 -c -o $@ $<
"""


def project(folder: Path) -> Path:
    folder.mkdir()
    numbers = range(PARTS)
    (folder / "parts.h").write_text("".join(f"int part{n}(void);\n" for n in numbers))
    for n in numbers:
        (folder / f"part{n}.c").write_text(f'#include "parts.h"\nint part{n}(void) {{ return {n}; }}\n')
    total = " + ".join(f"part{n}()" for n in numbers)
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); }}\n'
    )
    (folder / "Makefile").write_text(MAKEFILE.format(objects=" ".join(f"part{n}.o" for n in numbers)))
    return folder


def test_make(host: Host) -> None:
    """A program of several objects and a library is built; a second make has nothing to do, here and elsewhere; a file that
    is touched there is all that is built again.
    """
    folder = project(host.path / "project")
    assert run("make", "-j2", cwd=folder).count(" -c ") == PARTS + 1
    for _ in here_and_elsewhere(host):
        assert run("make", cwd=folder) == "make: 'program' is up to date.\n"
        assert run(folder / "program") == f"{sum(range(PARTS))}\n"
    (folder / "part1.c").write_text('#include "parts.h"\nint part1(void) { return 100; }\n')
    assert run("make", cwd=folder).count(" -c ") == 1
    assert run(folder / "program") == f"{sum(range(PARTS)) + 99}\n"
    assert run("make", "-q", cwd=folder) == ""
    assert os.access(folder / "program", os.X_OK)
