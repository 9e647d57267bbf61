#!/usr/bin/env bash
# Build the image: named VERSION-COMMIT, and latest.
#   launch/docker_build.sh [BUILD OPTION ...]       options of "docker build", for example --network host
#   env: ENGINE (docker or podman; default: the one that answers), IMAGE (name without tag; default edm2-recipe),
#        BASE_IMAGE (default: the CUDA image named in the Dockerfile)
# Settings of pip enter as secrets that no layer keeps:  --secret id=pip_conf,src=FILE  (a pip.conf: index, proxy, cert),
# --secret id=ca_bundle,src=FILE  (certificates of a proxy; the pip.conf names them as  cert = /run/secrets/ca_bundle).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/container_engine.sh
source launch/container_engine.sh

image=${IMAGE:-edm2-recipe}
if [[ ${image##*/} == *[:@]* ]]; then
  refuse "IMAGE=$image: must be a name without tag, which is the version and the commit; leave out what follows \":\" or \"@\""
fi
engine=$(find_engine)

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
from_checkout() { git -c safe.directory='*' "$@" 2>/dev/null; } # another user's checkout too
commit=$(from_checkout rev-parse --short=12 HEAD || echo unknown)
if [ -n "$(from_checkout status --porcelain)" ]; then commit+=-dirty; fi

options=(--build-arg "VERSION=$version" --build-arg "REVISION=$commit")
if [ -n "${BASE_IMAGE:-}" ]; then options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi

echo "== building $image:$version-$commit with $engine (about 7 GB; the first time some minutes)"
"$engine" build "${options[@]}" --tag "$image:$version-$commit" --tag "$image:latest" --file Dockerfile "$@" .
echo "built $image:$version-$commit; look at it with: ./launch/docker_run.sh self-check"
