#!/usr/bin/env bash
# Sweep over averages and guidance of a run with the tasks of a Slurm job array, which share the points among them:
#
#   sbatch --array=0-7 --gpus=1 launch/sweep.sh RUN --ref FILE --sigma-rel LIST --out PLACE [options of recipe/sweep.py]
#   launch/sweep.sh RUN --ref FILE --sigma-rel LIST --out PLACE [options of recipe/sweep.py]
#
# Each task measures every n-th point, of n tasks, and stores each result as it comes: a requeued task goes on, and the same
# array again measures what is missing. At the end the second line, here without Slurm, prints the table and makes the figures.
# Exit status: 0 done, 2 a mistake of the user, else a failure.
#   env: VENV   the environment (default .venv beside recipe/)
#SBATCH --job-name=edm2-sweep
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=edm2-sweep-%A-%a.out
set -euo pipefail

refuse() { echo "sweep.sh: $*" >&2; exit 2; }

# The repository: beside this script, unless Slurm runs a copy of the script from its spool directory.
find_root() {
  local command="" folder
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    command=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(\/[^ ]*\).*/\1/p')
    command=${command%%$'\n'*}  # the number of an array's last task is that of the array: Slurm lists all tasks
  fi
  for folder in "$(dirname "${BASH_SOURCE[0]}")/.." "${command%/*}/.." "${SLURM_SUBMIT_DIR:-.}"; do
    if [ -f "$folder/recipe/sweep.py" ]; then cd "$folder" && pwd && return; fi
  done
  refuse "${SLURM_SUBMIT_DIR:-$PWD}: holds no recipe/sweep.py; fix: run sbatch in the repository," \
    "on a file system that all nodes share"
}

main() {
  local root python task=()
  root=$(find_root)
  python=${VENV:-$root/.venv}/bin/python
  [ $# -ge 1 ] || refuse "usage: sweep.sh RUN --ref FILE --sigma-rel LIST --out PLACE [options of recipe/sweep.py]"
  [ -x "$python" ] || refuse "$python: no such program; fix: launch/install.sh, or VENV=FOLDER"
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    local id=$SLURM_ARRAY_TASK_ID min=${SLURM_ARRAY_TASK_MIN:-0} count=${SLURM_ARRAY_TASK_COUNT:-1}
    if [ $((${SLURM_ARRAY_TASK_MAX:-0} - min + 1)) != "$count" ]; then
      refuse "--array $min to $SLURM_ARRAY_TASK_MAX with $count tasks: must be all of a range; fix: --array=0-$((count - 1))"
    fi
    task=(--task "$((id - min))/$count")
  fi
  exec "$python" "$root/recipe/sweep.py" "$@" "${task[@]}"
}

main "$@"
