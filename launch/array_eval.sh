#!/usr/bin/env bash
# Draw samples by many post-hoc EMA lengths of one run, as a Slurm job array or one after another:
#
#   sbatch --array=0-3 --gpus=1 launch/array_eval.sh RUN 0.025:0.200:0.025 [options of recipe/sample.py]
#   launch/array_eval.sh RUN 0.05,0.10 [options of recipe/sample.py]
#
# RUN is a run's folder, local or s3://bucket/folder; the averages go to RUN/posthoc/. The lengths are divided
# among the tasks of the array, however many there are. Exit status: 0 done, 2 a mistake of the user, else a failure.
#   env: OUT    a folder, local or s3://: OUT/SIGMA_REL/SEED.png and OUT/SIGMA_REL.png, all in one (default images)
#        VENV   the environment (default .venv beside recipe/)
#SBATCH --job-name=edm2-eval
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=edm2-eval-%A-%a.out
set -euo pipefail

refuse() { echo "array_eval.sh: $*" >&2; exit 2; }

# The repository: beside this script, unless Slurm runs a copy of the script from its spool directory.
find_root() {
  local command="" folder
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    command=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(\/[^ ]*\).*/\1/p')
    command=${command%%$'\n'*}  # the number of an array's last task is that of the array: Slurm lists all tasks
  fi
  for folder in "$(dirname "${BASH_SOURCE[0]}")/.." "${command%/*}/.." "${SLURM_SUBMIT_DIR:-.}"; do
    if [ -f "$folder/recipe/sample.py" ]; then cd "$folder" && pwd && return; fi
  done
  refuse "${SLURM_SUBMIT_DIR:-$PWD}: holds no recipe/sample.py; fix: run sbatch in the repository," \
    "on a file system that all nodes share"
}

# Print the lengths of this task, one a line: with n tasks, every n-th of the list.
lengths() {
  "$python" -c '
import sys
from recipe.command_line import parse_numbers, unique
first, step, text = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
try:
    values = unique(parse_numbers(text))
except ValueError as error:
    sys.exit(f"array_eval.sh: {error}")
if any(not 0 < value < 12**-0.5 for value in values):
    sys.exit(f"array_eval.sh: {text}: lengths must be above 0 and below 12^-0.5 = 0.2887")
for value in values[first::step]:
    print(f"{value:g}")
' "$@" || exit 2
}

main() {
  local root python run list mine line snapshot length
  root=$(find_root)
  python=${VENV:-$root/.venv}/bin/python
  [ $# -ge 2 ] || refuse "usage: array_eval.sh RUN LENGTHS [options of recipe/sample.py]"
  run=${1%/} list=$2
  shift 2
  [[ $run == s3://* ]] || [ -d "$run" ] || refuse "$run: no such folder; fix: name a run, for example runs/edm2"
  [ -x "$python" ] || refuse "$python: no such program; fix: launch/install.sh, or VENV=FOLDER"
  local id=${SLURM_ARRAY_TASK_ID:-0} min=${SLURM_ARRAY_TASK_MIN:-0} count=${SLURM_ARRAY_TASK_COUNT:-1}
  if [ $((${SLURM_ARRAY_TASK_MAX:-0} - min + 1)) != "$count" ]; then
    refuse "--array $min to $SLURM_ARRAY_TASK_MAX with $count tasks: must be all of a range; fix: --array=0-$((count - 1))"
  fi
  mine=$(lengths $((id - min)) "$count" "$list")
  if [ -z "$mine" ]; then
    echo "array_eval.sh: nothing for this task: more tasks than lengths"
    return
  fi
  "$python" "$root/recipe/reconstruct.py" "$run" --sigma-rel "${mine//$'\n'/,}" | while read -r line; do
    echo "$line"
    snapshot=${line%%  sigma_rel *}
    length=${snapshot##*-}
    "$python" "$root/recipe/sample.py" "$snapshot" --out "${OUT:-images}/${length%.safetensors}" \
      --grid "${OUT:-images}/${length%.safetensors}.png" "$@" </dev/null
  done
}

main "$@"
