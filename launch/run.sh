#!/usr/bin/env bash
# Train, or run another command of the recipe, on all nodes of a Slurm job, or on this machine alone:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/run.sh CONFIG.yaml [MORE.yaml ...] [key=value ...]
#   launch/run.sh CONFIG.yaml [MORE.yaml ...] [key=value ...]
#   sbatch --nodes=4 --gpus-per-node=8 launch/run.sh recipe/sample.py [options of it]
#
# The first word may be recipe/train.py (which is meant without it), or another one that runs on many ranks.
# One launcher per node starts that node's ranks; their number and the address where they meet come from Slurm.
# The job is requeued by itself after preemption, the time limit, `scontrol requeue` and the death of a node (docs/cluster.md).
# Exit status: 0 done, 2 a mistake of the user, 75 stopped and saved (under Slurm: requeued), else a failure.
#   env: RANKS_PER_NODE   default: the GPUs of a node, or 1 without any
#        RESTARTS         how often a job that failed for an unknown reason is started again (default 0)
#        LOG_FOLDER       LOG_FOLDER/JOB/ gets what ranks other than 0 print (default logs); rank 0 prints to the job's output
#        VENV             the environment (default .venv beside recipe/)
#        CONTAINER        an image to train in; CONTAINER_RUNTIME: pyxis or apptainer; CONTAINER_MOUNTS: FROM:TO,...;
#                         CONTAINER_ROOT: where the image has this repository (default /opt/edm2)
#SBATCH --job-name=edm2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=edm2-%j.out
#SBATCH --signal=USR1@300
set -euo pipefail

SAVED=75 MISTAKE=2   # exit statuses of the recipe's commands
WAIT=40              # seconds that other nodes get to end after one did; the launcher's own clean-up takes up to 30

say() { echo "run.sh: $*" >&2; }
refuse() { say "$@"; exit "$MISTAKE"; }

# The repository: beside this script, unless Slurm runs a copy of the script from its spool directory.
find_root() {
  local command="" folder
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    command=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(\/[^ ]*\).*/\1/p')
  fi
  for folder in "$(dirname "${BASH_SOURCE[0]}")/.." "${command%/*}/.." "${SLURM_SUBMIT_DIR:-.}"; do
    if [ -f "$folder/recipe/train.py" ]; then
      cd "$folder" && pwd
      return
    fi
  done
  refuse "${SLURM_SUBMIT_DIR:-$PWD}: holds no recipe/train.py, and neither does the folder of ${command:-this script};" \
    "fix: run sbatch in the repository, on a file system that all nodes share"
}

# Number of GPUs in a value of Slurm such as "8" or "h100:8"; 0 if there is none.
gpus() { [[ ${1:-0} =~ ^([a-z0-9_.-]+:)*([0-9]+)$ ]] && echo "${BASH_REMATCH[2]}" || echo 0; }

ranks_per_node() {
  local count=${RANKS_PER_NODE:-}
  if [ -z "$count" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    count=$(gpus "${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}}")
    if [ "$count" -gt 0 ] && [ -n "${SLURM_GPUS:-}" ] && [ "$(gpus "$SLURM_GPUS")" != $((nodes * count)) ]; then
      refuse "SLURM_GPUS = $SLURM_GPUS: must be the same number on each of $nodes nodes, but the first has $count;" \
        "fix: ask for --gpus-per-node instead of --gpus"
    fi
  elif [ -z "$count" ] && command -v nvidia-smi >/dev/null; then
    count=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ') || count=0
  fi
  if [ -n "${RANKS_PER_NODE:-}" ] && ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
    refuse "RANKS_PER_NODE = $count: must be a whole number above 0; fix: leave it out for one rank per GPU"
  fi
  echo $((count > 0 ? count : 1))
}

check_allocation() {
  if ! [[ ${SLURM_TASKS_PER_NODE:-1} =~ ^1(\(x[0-9]+\))?$ ]]; then
    refuse "SLURM_TASKS_PER_NODE = $SLURM_TASKS_PER_NODE: must be 1 on every node, as one launcher starts all ranks of" \
      "its node; fix: sbatch --ntasks-per-node=1, and RANKS_PER_NODE if ranks are not GPUs"
  fi
}

# Refuse whatever can be found wrong without GPU, network and process group. With an image this machine may have no
# Python environment: then train.py checks the configuration inside it. Other commands check their options themselves.
check_config() {
  if [ -n "${CONTAINER:-}" ]; then
    case ${CONTAINER_RUNTIME:-} in
      apptainer) command -v apptainer >/dev/null || refuse "CONTAINER_RUNTIME = apptainer: no such command here;" \
        "fix: load its module, or CONTAINER_RUNTIME=pyxis" ;;
      pyxis) [ -n "${SLURM_JOB_ID:-}" ] || refuse "CONTAINER_RUNTIME = pyxis: is a plugin of Slurm, and this is no job;" \
        "fix: sbatch, or launch/docker_run.sh" ;;
      *) refuse "CONTAINER_RUNTIME = '${CONTAINER_RUNTIME:-}': must be pyxis or apptainer; fix: set it with CONTAINER" ;;
    esac
    [ $# -gt 0 ] || [ "$command" != train.py ] || refuse "no configuration; fix: name one, for example yamls/edm2.yaml"
    return
  fi
  [ -x "$bin/composer" ] || refuse "$bin/composer: no such program; fix: launch/install.sh, or VENV=FOLDER, or CONTAINER"
  [ "$command" = train.py ] || return 0
  WORLD_SIZE=$((nodes * RANKS_PER_NODE)) "$bin/python" "$root/recipe/config.py" "$@" >/dev/null || exit "$MISTAKE"
}

# Make a private, empty folder for this job on this node and print its name; delete those of jobs that have ended.
private_tmp() {
  local base=${TMPDIR:-/tmp} name live old
  name=$base/edm2-job-$SLURM_JOB_ID-$SLURM_NODEID-$(hostname -s)
  if live=$(squeue --noheader --user="$(id -u)" --format=%A 2>/dev/null); then
    for old in "$base"/edm2-job-*-"$(hostname -s)"; do
      [[ $old =~ /edm2-job-([0-9]+)-[^/]*$ ]] && [ -O "$old" ] || continue
      grep -qx "${BASH_REMATCH[1]}" <<<"$live" || rm -rf -- "$old"
    done
  fi
  rm -rf -- "$name"
  mkdir -m 700 -- "$name"
  echo "$name"
}

# Set the array `launcher` to the command of this node's launcher.
build_launcher() {
  launcher=("${bin:+$bin/}composer" -n "$RANKS_PER_NODE")
  if [ -n "${MASTER_PORT:-}" ]; then
    launcher+=(--world_size $((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) --node_rank "$SLURM_NODEID")
    launcher+=(--master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  fi
  launcher+=(--stdout "$logs/rank{rank}.out" --stderr "$logs/rank{rank}.err" "$recipe/$command")
  if [ "${CONTAINER_RUNTIME:-}" = apptainer ] && [ -n "${CONTAINER:-}" ]; then
    local gpu=() mounts="$PWD,$logs,${TMPDIR:-/tmp}${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}"
    if [ -e /dev/nvidiactl ]; then gpu=(--nv); fi
    launcher=(apptainer exec "${gpu[@]}" --bind "$mounts" --pwd "$PWD" "$CONTAINER" "${launcher[@]}")
  fi
}

# Run the launcher of one node to its end. The launcher itself dies of SIGUSR1, and on SIGTERM kills its ranks after 30
# seconds, saved or not. So this sends SIGUSR1 to the ranks, again and again, because a rank that is still importing has
# no handler yet, and the launcher ignores it.
on_node() {
  local launcher child stopping="" status=0
  build_launcher
  if [ "${SLURM_NODEID:-0}" != 0 ]; then  # rank 0 prints to the job's output, all others to their own files
    local first=$((SLURM_NODEID * RANKS_PER_NODE))
    exec 3>&2 >>"$logs/rank$first.out" 2>>"$logs/rank$first.err"
  fi
  trap stopping=yes TERM USR1
  trap 'if [ -n "$stopping" ]; then kill -KILL -- "-$child"; fi; stopping=yes' INT  # Ctrl-C twice: at once
  set -m  # a process group of its own
  (trap '' TERM USR1; exec "${launcher[@]}" "$@") &
  child=$!
  set +m
  while kill -0 "$child" 2>/dev/null; do
    if [ -z "$stopping" ]; then
      wait "$child" || true
    else
      kill -USR1 -- "-$child" 2>/dev/null || true
      for _ in {1..10}; do if kill -0 "$child" 2>/dev/null; then sleep 0.3 || true; fi; done
    fi
  done
  wait "$child" || status=$?
  kill -KILL -- "-$child" 2>/dev/null || true  # ranks that outlive a killed launcher
  if [ -n "$stopping" ] && [ "$command" != train.py ] && [ "$status" != 0 ] && [ "$status" != "$MISTAKE" ]; then
    status=$SAVED  # these have no handler, and need none: what they wrote is whole, and the same command goes on
  fi
  if [ "${SLURM_NODEID:-0}" != 0 ] && [ "$status" != 0 ] && [ "$status" != "$SAVED" ]; then
    { say "node $SLURM_NODEID ended with status $status; see $logs; its first rank's last words:"
      tail -n 5 "$logs/rank$first.err"; } >&3 2>&3
  fi
  if [ -n "${SLURM_NODEID:-}" ]; then echo "$status" >"$logs/node$SLURM_NODEID.status"; fi
  return "$status"
}

# Run one launcher per node. The status is 2 if that of any node is 2: the others failed only because they lost their peers.
on_all_nodes() {
  local step=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --overlap)
  step+=(--export=ALL --wait="$WAIT" --kill-on-bad-exit=0)
  local script=$root/launch/run.sh child status=0
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
  if [ "${CONTAINER_RUNTIME:-}" = pyxis ] && [ -n "${CONTAINER:-}" ]; then
    step+=(--container-image="$CONTAINER" --container-workdir="$PWD")
    step+=(--container-mounts="$PWD:$PWD,$logs:$logs,${TMPDIR:-/tmp}:${TMPDIR:-/tmp}${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
    script=$recipe/../launch/run.sh
  fi
  rm -f -- "$logs"/node*.status
  srun "${step[@]}" bash "$script" --on-node "recipe/$command" "$@" &
  child=$!
  trap 'kill -USR1 "$child" 2>/dev/null || true' USR1
  trap : TERM INT  # Slurm sends these to the tasks itself
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  wait "$child" || status=$?
  if grep -qx "$MISTAKE" "$logs"/node*.status 2>/dev/null; then status=$MISTAKE; fi
  return "$status"
}

# Requeue the job, unless it has left the state RUNNING: then Slurm requeues it anyway, or someone has cancelled it.
requeue() {
  local state
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null) || state=unknown
  say "$1; the job is $state"
  if [ "$state" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" || say "Slurm does not requeue the job; the same sbatch command goes on"
  fi
}

# Print when the Slurm daemon of each node was started: a node that restarted while the job ran has lost its ranks.
node_starts() { scontrol show node -o "$SLURM_JOB_NODELIST" 2>/dev/null | grep -o 'SlurmdStartTime=[^ ]*' || true; }

# Whether a node does not answer or has restarted. Slurm itself notices minutes later, or never if the node is back by then.
node_is_lost() {
  local probe=(srun --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 true)
  ! timeout 60 "${probe[@]}" 2>/dev/null || [ "$(node_starts)" != "$1" ]
}

in_slurm() {
  local status=0 starts
  starts=$(node_starts)
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_PORT=$((12000 + SLURM_JOB_ID % 20000))  # two jobs on a node differ; below the ports that systems hand out
  export MASTER_ADDR MASTER_PORT RANKS_PER_NODE
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $nodes nodes x $RANKS_PER_NODE ranks, meeting at" \
    "$MASTER_ADDR:$MASTER_PORT; logs in $logs"
  on_all_nodes "$@" || status=$?
  case $status in
    0 | "$MISTAKE") ;;
    "$SAVED") requeue "stopped and saved" ;;
    *)
      if node_is_lost "$starts"; then
        requeue "a node was lost"
      elif [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-0}" ]; then
        requeue "failed with status $status, start again ($((${SLURM_RESTART_COUNT:-0} + 1)) of ${RESTARTS:-0} restarts)"
      else
        say "failed with status $status; logs in $logs; RESTARTS=3 would start such a job again"
      fi ;;
  esac
  return "$status"
}

main() {
  local nodes=${SLURM_JOB_NUM_NODES:-1} root recipe bin="" logs on_node="" command=train.py
  root=$(find_root)
  recipe=$root/recipe
  bin=${VENV:-$root/.venv}/bin
  if [ -n "${CONTAINER:-}" ]; then recipe=${CONTAINER_ROOT:-/opt/edm2}/recipe bin=""; fi
  logs=$(realpath -m -- "${LOG_FOLDER:-logs}/${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)}")
  if [ "${1:-}" = --on-node ]; then on_node=yes; shift; fi
  if [[ ${1:-} =~ (^|/)recipe/([a-z_]+\.py)$ ]]; then command=${BASH_REMATCH[2]}; shift; fi
  [[ $command =~ ^(train|sample|evaluate|prepare)\.py$ ]] || refuse "recipe/$command: does not run on many ranks;" \
    "fix: start it by itself, as python recipe/$command"
  if [ -n "$on_node" ]; then
    TMPDIR=$(private_tmp)
    export TMPDIR
    local status=0
    on_node "$@" || status=$?
    rm -rf -- "$TMPDIR"
    return "$status"
  fi
  if ! [[ ${RESTARTS:-0} =~ ^[0-9]+$ ]]; then refuse "RESTARTS = $RESTARTS: must be a whole number; fix: RESTARTS=3"; fi
  check_allocation
  RANKS_PER_NODE=$(ranks_per_node)
  check_config "$@"
  mkdir -p -- "$logs"
  if [ -n "${SLURM_JOB_ID:-}" ]; then in_slurm "$@"; else on_node "$@"; fi
}

main "$@"
