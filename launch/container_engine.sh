#!/usr/bin/env bash
# Sourced by docker_build.sh and docker_run.sh: a one-line refusal, and which program builds and runs images here.

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Print docker or podman: ENGINE if it is set, otherwise the first whose `info` succeeds.
find_engine() {
  local candidate
  case ${ENGINE:-} in
    "" | docker | podman) ;;
    *) refuse "ENGINE=$ENGINE: must be docker or podman; leave it out to take the one that is there" ;;
  esac
  for candidate in ${ENGINE:-docker podman}; do
    if "$candidate" info >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  refuse "${ENGINE:-docker and podman}: must answer to \"info\", and ${ENGINE:+it does not}${ENGINE:-neither does};" \
    "install one, start its service, or name the other with ENGINE"
}
