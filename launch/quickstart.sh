#!/usr/bin/env bash
# The whole way with the embedded data: install, prepare digits, train EDM2, reconstruct a post-hoc EMA, draw samples.
#   launch/quickstart.sh [key=value ...]        overrides of yamls/edm2.yaml, for training
# Safe to run again: finished steps are kept, an interrupted training resumes.
#   env: PYTHON, VENV (see install.sh), RUN_FOLDER (default runs/edm2), DATA_FOLDER (default data/digits)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
bin=${VENV:-.venv}/bin
run=${RUN_FOLDER:-runs/edm2}
data=${DATA_FOLDER:-data/digits}

echo "== 1/4 preparing the embedded digits as shards"
"$bin/python" recipe/prepare.py digits --out "$data" --resolution 16

echo "== 2/4 training (about 5 minutes on 2 CPU cores)"
"$bin/composer" -n 1 recipe/train.py yamls/edm2.yaml "data.local=$data" "save_folder=$run" "$@"

echo "== 3/4 reconstructing post-hoc averages of the weights"
"$bin/python" recipe/reconstruct.py "$run" --sigma-rel 0.075,0.10,0.15

echo "== 4/4 drawing samples"
average=$(find "$run/posthoc" -name 'posthoc-*-0.100.safetensors' | sort | tail -n 1)
"$bin/python" recipe/sample.py "$average" --seeds 0-99 --steps 16 --guidance 2 \
  --out "$run/images" --grid "$run/grid.png" --zoom 4
echo
echo "done: look at $run/grid.png (each column asks for one digit, 0 to 9)"
