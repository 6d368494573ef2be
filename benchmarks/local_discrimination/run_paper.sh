#!/usr/bin/env bash
# The paper protocol of this folder: DATA holds fundus, chest_xray, cephalometric, left_atrium; OUT gets everything.
set -euo pipefail
DATA=${1:?usage: run_paper.sh DATA OUT}
OUT=${2:?usage: run_paper.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
BENCH=("$MEDSEG" bench local_discrimination --preset paper --device cuda)
"${BENCH[@]}" --data "$DATA/fundus" --task segmentation --out "$OUT/fundus"
"${BENCH[@]}" --data "$DATA/chest_xray" --task segmentation --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/chest"
"${BENCH[@]}" --data "$DATA/cephalometric" --task landmarks --out "$OUT/landmarks"
"${BENCH[@]}" --data "$DATA/fundus" --task unsupervised --arms otsu,kmeans,shape_guided,simulated_vessels --out "$OUT/vessels"
"${BENCH[@]}" --data "$DATA/chest_xray" --task unsupervised --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/lungs"
"${BENCH[@]}" --data "$DATA/chest_xray" --task cold_start --seeds 10 --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/cold_chest"
"${BENCH[@]}" --data "$DATA/left_atrium" --task cold_start --seeds 10 --scale 0.5 --set patch=48,48,32 --out "$OUT/cold_atrium"
