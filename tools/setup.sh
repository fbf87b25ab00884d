#!/usr/bin/env bash
# Makes .venv in this clone, with aioproc and what its tests need.
#
#   bash tools/setup.sh [EXTRA]     EXTRA: test (default) or check (all of tools/check.py)
#
# System packages that are missing are installed by apt-get where that is possible.
# PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-test}
python=${PYTHON:-python3}

have() { command -v "$1" >/dev/null; }
knows() { "$python" -c "$1" 2>/dev/null; }

missing() {
    if ! have "$python"; then
        echo python3 python3-dev python3-venv
    else
        knows 'import ensurepip, venv' || echo python3-venv
        knows 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' ||
            echo python3-dev
        if [ "$extra" = check ] && ! knows 'import test.test_asyncio'; then
            local version
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            [ -d "/usr/lib/python$version/test/test_asyncio" ] ||
                echo "libpython$version-testsuite"
        fi
    fi
    have "${CC:-gcc}" && echo '#include <stdlib.h>' | "${CC:-gcc}" -E - >/dev/null 2>&1 ||
        echo gcc libc6-dev
    have git || echo git
    have gzip || echo gzip
    have objdump || echo binutils
    # Terminals, and what is run in them, for the tests.
    have tmux || echo tmux
    have vi || echo vim-tiny
    have top || echo procps
}

install() {
    local sudo=()
    if ! have apt-get; then
        echo "tools/setup.sh: install the equivalent of: $*" >&2
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        sudo=(sudo)
    fi
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@" </dev/null
}

packages=$(missing)
if [ -n "$packages" ]; then
    # shellcheck disable=SC2086  # words are what we want
    install $packages
fi

if ! knows 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "tools/setup.sh: $python is not Python 3.10 or newer; set PYTHON" >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv

# Where there is a native backend, tests without it would prove half.
if [ -z "${AIOPROC_BUILD_EXTENSION:-}" ] && [ "$(uname)" = Linux ]; then
    export AIOPROC_BUILD_EXTENSION=require
fi
.venv/bin/python -m pip install -q --disable-pip-version-check -e ".[$extra]"
.venv/bin/python -m aioproc
