#!/usr/bin/env bash
# Full resolution, three seeds, on a GPU.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
BENCH=("$MEDSEG" bench dram --data "$DATA" --preset paper --device cuda)
ARMS=threshold,cam,cam_rank,gradcam,regression,regression_rank,attention,crf,attention_crf,full,no_candidates,supervised
"${BENCH[@]}" --arms "$ARMS" --out "$OUT/bench"
"${BENCH[@]}" --task extents --out "$OUT/extents"
"${BENCH[@]}" --task crf_cost --out "$OUT/crf_cost"
