#!/usr/bin/env bash
# The paper's protocol on a GPU: 15,000 iterations, patch 112x112x80, 4 and 8 labels, 3 seeds, the cost of a step and of a
# volume, and whether the acquisition score points at the errors. PYTHON is the interpreter that medseg is installed in.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
PYTHON=${PYTHON:-python}
HERE=$(cd "$(dirname "$0")/.." && pwd)
"$MEDSEG" bench caml --data "$DATA" --preset paper --device cuda --arms speed --out "$OUT/speed"
for labels in 8 4; do
  "$MEDSEG" bench caml --data "$DATA" --preset paper --device cuda --labelled "$labels" \
    --arms supervised,mutual,full,beyond --out "$OUT/labels_$labels"
  "$PYTHON" "$HERE/score.py" --model "$OUT/labels_$labels/runs/full_seed0" --data "$DATA" --exclude-first "$labels" \
    --device cuda --cases 24 --json "$OUT/labels_$labels/score.json"
done
"$PYTHON" "$HERE/window.py" --image "$DATA/images/la_000.nii.gz" --device cuda | tee "$OUT/window.json"
