#!/bin/sh
# Makes .venv with everything that b2fs needs; installs missing Debian or Ubuntu packages first.
#
#   ./install.sh           what running needs
#   ./install.sh --test    also what the tests need (rclone, and the programs of tests/programs)
#   ./install.sh --bench   also what `make bench` compares with (rclone, libfuse's example)
#
# Run it as often as you like: when nothing has changed it ends at once. It asks no questions: packages are
# installed as root or with a sudo that needs no password, otherwise it prints the line to run and ends with 1.

set -eu
cd "$(dirname "$0")"

venv=.venv
stamp=$venv/.b2fs-installed
for_tests=false
for_bench=false
case "${1:-}" in
    "") ;;
    --test) for_tests=true ;;
    --bench) for_bench=true ;;
    *) echo "usage: ./install.sh [--test | --bench]" >&2; exit 2 ;;
esac

say() { echo "install: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---------------------------------------------------------------- python: 3.11 or newer

# A python3 of pyenv or of the user is as good as Debian's: only its version counts.
find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if have "$python" && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
}

# ---------------------------------------------------------------- what is missing

# Prints the packages to install. Asks for what they give, not for the packages themselves.
missing_packages() {
    if [ -z "$python" ]; then
        # Ubuntu 22.04 has 3.10 as python3, and 3.11 beside it.
        if ! have python3; then echo python3 python3-venv python3-dev
        else echo python3.11 python3.11-venv python3.11-dev
        fi
    else
        # python3.12-venv belongs to python3.12; python3-venv to whatever Debian calls python3.
        $python -c 'import ensurepip, venv' 2>/dev/null || echo "$python-venv"
        $python -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null ||
            echo "$python-dev"
    fi
    have gcc || echo gcc
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    have pkg-config || echo pkg-config
    { have pkg-config && pkg-config --exists fuse3; } || echo libfuse3-dev
    have fusermount3 || echo fuse3
    if $for_tests; then
        # npm is not among them: Debian's brings more than 300 packages; its test is left out, and counted, without it
        for program in rclone git make perl rsync zip unzip sox fio stress-ng strace; do
            have $program || echo $program
        done
        have ex || echo vim-tiny
        have setfattr || echo attr
    fi
    if $for_bench; then
        # gcc and libfuse3-dev, which brings the source of passthrough_ll, are asked for above
        for program in rclone zip; do
            have $program || echo $program
        done
    fi
}

install_packages() {
    if ! have apt-get; then
        say "this is neither Debian nor Ubuntu; install what these packages hold: $*"
        exit 1
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        if ! have sudo || ! sudo -n true 2>/dev/null; then
            say "some packages are missing. As root, run this, then ./install.sh again:"
            echo "apt-get update && apt-get install -y --no-install-recommends $*"
            exit 1
        fi
    fi
    say "installing $*"
    # shellcheck disable=SC2086 # as_root is a word or nothing
    $as_root apt-get -qq update
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

python=$(find_python)
packages=$(missing_packages | tr '\n' ' ')
if [ -n "${packages% }" ]; then
    # shellcheck disable=SC2086 # a list of words
    install_packages $packages
    python=$(find_python)
fi
if [ -z "$python" ]; then
    say "Python 3.11 or newer is needed; this system offers $(python3 --version 2>&1)"
    exit 1
fi

# ---------------------------------------------------------------- the virtual environment

# It is current when it was made here, by this interpreter, from this lock and this metadata.
base="$PWD $($python -c 'import sys; print(sys.version_info[:3], sys.base_prefix)')"
lock=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
stamped=$(cat "$stamp" 2>/dev/null || true)
if [ "$stamped" = "$base $lock" ] && "$venv/bin/python" -c 'import b2fs' 2>/dev/null; then
    exit 0
fi

say "making $venv (about half a minute)"
rm -f "$stamp"
case "$stamped" in
    "" | "$base "*) "$venv/bin/pip" --version >/dev/null 2>&1 || $python -m venv --clear "$venv" ;;
    *) $python -m venv --clear "$venv" ;; # copied from elsewhere, or of another interpreter
esac
"$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
# Everything that it needs is there now, setuptools included, so nothing else is fetched.
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
echo "$base $lock" >"$stamp"
say "done: $venv/bin/b2fs"
