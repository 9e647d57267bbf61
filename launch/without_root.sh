#!/usr/bin/env bash
# Run a command as a stranger on this machine: not root, unknown to /etc/passwd, a home folder that cannot be written,
# umask 077, locale C, a time zone 14 hours from UTC and next to nothing in the environment.
#   launch/without_root.sh COMMAND...           env: VENV (see install.sh)
# Root gives up what makes it root; someone else stays who they are. Status: the command's; 125 if root may not do that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uid=54321
bin=$(cd "${VENV:-.venv}/bin" && pwd)

as_stranger() {
  local drop=()
  if [ "$(id -u)" = 0 ]; then
    drop=(setpriv "--reuid=$uid" "--regid=$uid" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all)
  fi
  "${drop[@]}" env -i PATH="$bin:/usr/local/bin:/usr/bin:/bin" HOME="$WORK/home" TMPDIR="$WORK/tmp" LC_ALL=C \
    TZ=Pacific/Kiritimati PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1 bash -c 'umask 077; exec "$@"' stranger "$@"
}

# open_ways FOLDER...: let the stranger reach folders below another's private one (/root, say), in this mount namespace alone
open_ways() {
  local folder way number=0
  mkdir "$WORK/kept"
  for folder in "$@"; do # before any of them is covered
    mkdir "$WORK/kept/$((++number))"
    mount --bind "$folder" "$WORK/kept/$number"
  done
  number=0
  for folder in "$@"; do
    number=$((number + 1))
    if as_stranger test -x "$folder"; then continue; fi
    way=/${folder#/}
    while [ "$way" != / ] && ! as_stranger test -x "$(dirname "$way")"; do way=$(dirname "$way"); done
    if ! as_stranger test -x "$way" && [ -d "$way" ]; then mount -t tmpfs -o mode=0755 tmpfs "$way"; fi
    mkdir -p "$folder"
    mount --bind "$WORK/kept/$number" "$folder"
  done
}

if [ -z "${WORK:-}" ]; then # outside of the namespace
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/stranger-XXXXXX")
  export WORK
  trap 'rm -rf "$WORK"' EXIT
  mkdir "$WORK/home" "$WORK/tmp"
  chmod 0755 "$WORK"
  chmod 0555 "$WORK/home"
  if [ "$(id -u)" != 0 ]; then
    as_stranger "$@"
  elif ! as_stranger true || ! unshare --mount true; then
    echo "without_root.sh: root may not change its user or the view of its mounts here" >&2
    exit 125
  else
    chown "$uid:$uid" "$WORK/tmp"
    unshare --mount "$0" "$@"
  fi
else
  open_ways "$PWD" "$(dirname "$bin")" "$("$bin/python" -c 'import sys; print(sys.base_prefix)')"
  if ! as_stranger python -c "import recipe"; then
    echo "without_root.sh: another user may not read $PWD or run $bin/python" >&2
    exit 125
  fi
  as_stranger "$@"
fi
