#!/usr/bin/env bash
# Lint, types and tests in the same environment as the main job; the last line says how long it all took.
#   launch/test.sh                      the gate: everything but the long random tests
#   launch/test.sh soak                 those as well
#   launch/test.sh PYTEST_ARGUMENTS     only these tests, for example: launch/test.sh -m "not slow"
# Tests run on two processes, except those that measure time or need the whole machine. Status 0: every part passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
bin=${VENV:-.venv}/bin
export PATH="$PWD/$bin:$PATH"
SECONDS=0
failed=()
trap 'exit 130' INT  # pytest takes Ctrl-C as the end of its own part alone

# part NAME COMMAND...: run one part; the others run too if it fails
part() {
  local name=$1 begin=$SECONDS
  shift
  echo "== $name"
  "$@" || failed+=("$name")
  echo "== $name took $((SECONDS - begin)) s"
}

# Types are looked at while tests run: it is one process, and the machine has two processors at least.
begin_types() {
  types=$(mktemp)
  "$bin/pyright" >"$types" 2>&1 &
  types_process=$!
  trap 'kill "$types_process" 2>/dev/null || true; rm -f "$types"' EXIT
}
end_types() {
  local status=0
  wait "$types_process" || status=$?
  trap - EXIT
  cat "$types"
  rm -f "$types"
  return "$status"
}

tests() { "$bin/python" -m pytest "$@"; }
# A process that a hung test took along (pyproject.toml) is not replaced: its successor would begin with the same test.
beside() { tests -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"; }
long() { "$@" -o faulthandler_timeout=9000; }
# Only the files with such tests are collected: all of them take 12 seconds.
alone() {
  local files
  mapfile -t files < <(grep -rl --include="test_*.py" "mark\.alone" tests)
  tests "${files[@]}" "$@"
}

part shellcheck "$bin/shellcheck" launch/*.sh .ci/run
part "ruff check" "$bin/ruff" check .
part "ruff format" "$bin/ruff" format --check .
begin_types
if [ $# -gt 0 ] && [ "$*" != soak ]; then
  part "tests $*" tests "$@"
  part pyright end_types
else
  part "tests" beside -m "not alone and not soak"
  part pyright end_types
  part "tests that need the machine" alone -m "alone and not soak"
fi
if [ "$*" = soak ]; then
  part "soak" long beside -m "soak and not alone"
  part "soak that needs the machine" long alone -m "soak and alone"
  part "other processors, Pythons and users" launch/test_elsewhere.sh
fi

printf '== %d min %02d s in all; ' $((SECONDS / 60)) $((SECONDS % 60))
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "$(IFS=,; echo "${failed[*]}")"
  exit 1
fi
echo "every part passed"
