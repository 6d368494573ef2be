#!/usr/bin/env bash
# Full resolution, all labels, three seeds, on a GPU; and 1, 2 and 4 labelled cases of each domain.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
ORGANS=(--data "$DATA/cardiac_mr" --data "$DATA/prostate_mr" --data "$DATA/hippocampus_mr" --data "$DATA/left_atrium")
"$MEDSEG" bench multidomain --data "$DATA/vertebrae_mr" --preset paper --folds 3 --device cuda --out "$OUT/vertebrae"
"$MEDSEG" bench multidomain "${ORGANS[@]}" --preset paper --device cuda --out "$OUT/organs"
for labelled in 3 6 12; do
  "$MEDSEG" bench multidomain --data "$DATA/vertebrae_mr" --preset paper --labelled "$labelled" --held-out 6 \
    --device cuda --out "$OUT/vertebrae_$labelled"
done
