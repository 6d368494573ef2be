#!/usr/bin/env bash
# 1024 x 512, 7000 iterations, three seeds, on a GPU.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
PYTHON=${PYTHON:-python}
"$MEDSEG" bench seg4reg --data "$DATA" --preset paper --device cuda --out "$OUT/bench"
"$MEDSEG" bench seg4reg --data "$DATA" --preset paper --device cuda --task speed --out "$OUT/speed"
"$PYTHON" "$(dirname "$0")/score.py" --bench "$OUT/bench" --arm full --data "$DATA" --device cuda --json "$OUT/score.json"
