#!/usr/bin/env bash
# The paper's protocol on a GPU: 15,000 iterations, patch 112x112x80, 4 and 8 labels, 3 seeds, and the cost of a step.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
"$MEDSEG" bench caml --data "$DATA" --preset paper --device cuda --arms speed --out "$OUT/speed"
for labels in 8 4; do
  "$MEDSEG" bench caml --data "$DATA" --preset paper --device cuda --labelled "$labels" \
    --arms supervised,mutual,full,beyond --out "$OUT/labels_$labels"
done
