#!/usr/bin/env bash
# Run a command in the image, with the GPUs, the data and the runs of this host.
#   launch/docker_run.sh composer -n 8 recipe/train.py yamls/edm2.yaml [key=value ...]
#   launch/docker_run.sh [RUN OPTION ... --] COMMAND [ARGUMENT ...]    options of "docker run", e.g. --detach --name edm2 --
#   env: ENGINE (docker or podman; default: the one that answers), IMAGE (default edm2-recipe:latest),
#        DATA_FOLDER, RUNS_FOLDER (become data/ and runs/ in the container; default those of the checkout),
#        GPUS (auto, all or none; default auto: all if there are any), SHM_SIZE (of /dev/shm; default 16g),
#        STOP_SECONDS (between "docker stop" and SIGKILL, for saving; default 300)
# Credentials of S3 and of the loggers enter by the names of their variables: those that are exported here are passed on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/container_engine.sh
source "$here/launch/container_engine.sh"

given=()
if [[ ${1:-} == -* ]]; then
  while [ $# -gt 0 ] && [ "$1" != -- ]; do given+=("$1"); shift; done
  if [ $# -eq 0 ]; then
    refuse "${given[0]:---}: options of the engine must end with \"--\", before the command; for example:" \
      "docker_run.sh --name edm2 -- self-check"
  fi
  shift
fi
if [ $# -eq 0 ]; then
  refuse "the command is missing; for example: docker_run.sh composer recipe/train.py yamls/edm2.yaml, or self-check"
fi

# Mount a folder of the host. If it is missing, it is made and given to the user that will write to it.
mount_folder() {
  local key=$1 folder=$2 target=$3
  if [[ $folder == *:* ]]; then refuse "$key=$folder: must not contain \":\"; name the folder by a link without one"; fi
  if [ -e "$folder" ] && [ ! -d "$folder" ]; then refuse "$key=$folder: must be a folder; name another, or move the file"; fi
  if [ ! -e "$folder" ]; then
    mkdir -p "$folder" 2>/dev/null || refuse "$key=$folder: must be a folder that can be made; name one below your own"
    if [ "$(id -u)" -eq 0 ]; then chown 10001:10001 "$folder"; fi
  fi
  options+=(--volume "$(cd "$folder" && pwd):$target")
}

# Mount the file that a variable names under its own path, so that the variable is right in the container too.
mount_named_file() {
  local key=$1 file=${!1}
  if [[ $file != /* || $file == *:* || ! -f $file ]]; then
    refuse "$key=$file: must be the absolute path of a file, without \":\"; correct it, or unset $key"
  fi
  options+=(--volume "$file:$file:ro")
}

# Pass variables by name alone: the engine reads the values from the environment, so that no command line shows them.
pass_variables() {
  local name
  while read -r name; do
    case $name in
      AWS_CA_BUNDLE | AWS_CONFIG_FILE | AWS_*_FILE) mount_named_file "$name"; options+=(--env "$name") ;;
      AWS_* | S3_ENDPOINT_URL | WANDB_* | MLFLOW_TRACKING_* | NCCL_* | OMP_NUM_THREADS) options+=(--env "$name") ;;
    esac
  done < <(compgen -e)
}

pass_gpus() {
  local gpus=${GPUS:-auto}
  case $gpus in
    none) return ;;
    all) ;;
    auto) if ! nvidia-smi -L >/dev/null 2>&1; then return; fi ;;
    *) refuse "GPUS=$gpus: must be auto, all or none; choose single ones with CUDA_VISIBLE_DEVICES in the command" ;;
  esac
  if [ "$engine" = docker ]; then
    options+=(--gpus all)
  elif compgen -G "/etc/cdi/*nvidia*" >/dev/null || compgen -G "/var/run/cdi/*nvidia*" >/dev/null; then
    options+=(--device nvidia.com/gpu=all)
  else
    refuse "GPUS=$gpus: podman must find the GPUs described in /etc/cdi; write the description with" \
      "\"sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml\", or set GPUS=none"
  fi
}

# Files in the mounted folders are to belong to who starts the container; root becomes the image's own user.
pass_user() {
  if [ "$engine" = podman ]; then options+=(--security-opt label=disable); fi # SELinux would hide the folders
  if [ "$(id -u)" -eq 0 ]; then return; fi
  options+=(--user "$(id -u):$(id -g)")
  if [ "$engine" = podman ]; then options+=(--userns keep-id); fi
}

engine=$(find_engine)
# Its own /dev/shm, large enough for data loaders and NCCL: two runs on a host do not meet there.
options=(--shm-size "${SHM_SIZE:-16g}" --stop-timeout "${STOP_SECONDS:-300}")
# A detached container stays, to be looked at with "docker logs" and started again with "docker start".
if [[ " ${given[*]} " != *" --detach "* && " ${given[*]} " != *" -d "* ]]; then options+=(--rm); fi
mount_folder DATA_FOLDER "${DATA_FOLDER:-$here/data}" /opt/edm2/data
mount_folder RUNS_FOLDER "${RUNS_FOLDER:-$here/runs}" /opt/edm2/runs
pass_variables
pass_gpus
pass_user
if [ -t 0 ] && [ -t 1 ]; then options+=(--interactive --tty); fi

# Given options come last, so that they win.
exec "$engine" run "${options[@]}" "${given[@]}" "${IMAGE:-edm2-recipe:latest}" "$@"
