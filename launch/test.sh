#!/usr/bin/env bash
# Lint, types and tests in the same environment as the main job.
#   launch/test.sh [pytest arguments]           for example: launch/test.sh -m "not slow"
# Quick tests run on two processes; slow ones and those that measure time have the machine for themselves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
bin=${VENV:-.venv}/bin
export PATH="$PWD/$bin:$PATH"

echo "== shellcheck";  "$bin/shellcheck" launch/*.sh .ci/run
echo "== ruff";        "$bin/ruff" check .; "$bin/ruff" format --check .
echo "== pyright";     "$bin/pyright"
echo "== pytest"
if [ $# -gt 0 ]; then exec "$bin/python" -m pytest "$@"; fi
status=0
"$bin/python" -m pytest -n 2 --dist loadfile -m "not slow and not alone" || status=$?
"$bin/python" -m pytest -m "slow or alone" || status=$?
exit "$status"
