#!/usr/bin/env bash
# Make .venv from the lock file; does nothing when that is already done.
#   launch/install.sh          env: PYTHON (interpreter, 3.10 to 3.12), VENV (where; default .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
stamp=$venv/.installed
want=$(cat requirements.lock pyproject.toml | sha256sum)

if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then break; fi
  done
  echo "install.sh: ${PYTHON:-no python3 found} is not a Python 3.10, 3.11 or 3.12 with the venv module;" \
    "install one (Debian: apt-get install python3 python3-venv) or name it with PYTHON=/path/to/python" >&2
  return 1
}

python=$(find_python)
if [ ! -x "$venv/bin/python" ]; then
  echo "== making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
echo "== installing the locked packages (about 6 GB, some minutes; only once)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
echo "$want" >"$stamp"
