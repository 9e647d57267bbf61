#!/usr/bin/env bash
# Lint, types and tests in the same environment as the main job.
#   launch/test.sh [pytest arguments]           for example: launch/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
bin=${VENV:-.venv}/bin
export PATH="$PWD/$bin:$PATH"

echo "== shellcheck";  "$bin/shellcheck" launch/*.sh .ci/run
echo "== ruff";        "$bin/ruff" check . && "$bin/ruff" format --check .
echo "== pyright";     "$bin/pyright"
echo "== pytest";      "$bin/python" -m pytest "$@"
