#!/usr/bin/env bash
# The CPU figures of benchmarks/dram/README.md: DATA is a folder with images/ and labels/, OUT gets everything.
set -euo pipefail
DATA=${1:?usage: run_cpu.sh DATA OUT}
OUT=${2:?usage: run_cpu.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
BENCH=("$MEDSEG" bench dram --data "$DATA" --preset cpu --device cpu)
ARMS=threshold,cam,cam_rank,gradcam,regression,regression_rank,attention,crf,attention_crf,full,no_candidates,supervised
"${BENCH[@]}" --arms "$ARMS" --out "$OUT/bench"
"${BENCH[@]}" --task extents --out "$OUT/extents"
"${BENCH[@]}" --task crf_cost --out "$OUT/crf_cost"
