#!/usr/bin/env bash
# The quick tests as other people's machines run them: a processor with AVX2 and no AVX-512, each other Python that the
# README names, and a user who is not root and whose home folder cannot be written (without_root.sh).
#   launch/test_elsewhere.sh [PYTEST_ARGUMENTS]     for example: launch/test_elsewhere.sh tests/edm2
#   env: PYTHON, VENV (see install.sh), OTHER_VENVS (where the other Pythons' .venv-3.10, .venv-3.12 are kept; default here)
# A part runs whether or not the one before passed. Status 1: a part failed or, where CI is set, cannot run on this
# machine; the last lines name both, with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
bin=$(cd "${VENV:-.venv}/bin" && pwd)
venvs=${OTHER_VENVS:-.}
mkdir -p "$venvs"
pythons=(3.10 3.11 3.12) # those of the README
free_gb=10               # an installation takes 7.5
quick=(-m pytest -m "not slow and not alone and not soak" "$@")
beside=(-n 2 --dist loadfile --no-loadscope-reorder) # where root gives each process a /dev/shm of its own (tests/conftest.py)
if [ "$(id -u)" != 0 ]; then beside=(); fi
failed=()
not_run=()

# part NAME COMMAND...: run one part and note if it fails
part() {
  local name=$1 begin=$SECONDS status=0
  shift
  echo "== quick tests, $name"
  "$@" || status=$?
  if [ "$status" = 125 ]; then not_run+=("$name: see its message above"); elif [ "$status" != 0 ]; then failed+=("$name"); fi
  echo "== $name took $((SECONDS - begin)) s"
}

find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$1" \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# with_python VERSION: install the lock for another Python, once, and run the quick tests on it
with_python() {
  local version=$1 venv="$venvs/.venv-$1" python free
  if ! python=$(find_python "$version"); then
    not_run+=("Python $version: no python$version with the venv module is on PATH or below ~/.pyenv")
    return
  fi
  free=$(df --output=avail --block-size=1G "$venvs" | tail -n 1)
  if [ ! -f "$venv/.installed" ] && [ "$free" -lt "$free_gb" ]; then
    not_run+=("Python $version: its installation needs $free_gb GB in $venvs, where $free are free")
  elif ! PYTHON=$python VENV=$venv ./launch/install.sh; then
    failed+=("Python $version: the lock does not install")
  else
    part "Python $version" env PATH="$(cd "$venv/bin" && pwd):$PATH" "$venv/bin/python" "${quick[@]}" "${beside[@]}"
  fi
}

part "AVX2 alone" \
  env ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 PATH="$bin:$PATH" "$bin/python" "${quick[@]}" "${beside[@]}"
own=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in "${pythons[@]}"; do
  if [ "$version" != "$own" ]; then with_python "$version"; fi
done
part "not root, home folder read-only" ./launch/without_root.sh "$bin/python" "${quick[@]}" -p no:cacheprovider

for name in "${not_run[@]}"; do echo "== not run: $name"; done
for name in "${failed[@]}"; do echo "== failed: $name"; done
printf '== elsewhere: %d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60))
if [ ${#failed[@]} -gt 0 ]; then exit 1; fi
if [ -n "${CI:-}" ] && [ ${#not_run[@]} -gt 0 ]; then exit 1; fi
