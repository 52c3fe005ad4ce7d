#!/bin/bash
# What only a GPU can tell, in seven minutes at most: the CUDA tests, how fast it trains and swaps.
#
#   bash scripts/gpu_check.sh OUT [DEVICE]
#
# Each part has its own time limit, so that one that hangs leaves time for the rest; what each said
# lies in OUT, and the last lines of it are printed. Parts that matter most come first.
out=${1:?usage: bash scripts/gpu_check.sh OUT [DEVICE]}
device=${2:-cuda}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
failed=0

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    [ $code -eq 0 ] || failed=1
    echo "== $name: exit code $code after $((SECONDS - began)) s"
    tail -n 8 "$out/$name.txt"
}

bench() { # NAME SECONDS ARGUMENTS...
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" python3 -m faceswap bench "$@" --device "$device"
}

bench train_aei_16 40 train --config configs/aei_2blk.yaml --set batch_size=16 --steps 20
bench train_aei_64 40 train --config configs/aei_2blk.yaml --set batch_size=64 --steps 20
part tests_train 90 python3 -m pytest -q -p no:cacheprovider tests/test_train_cuda.py
part tests_swap 60 python3 -m pytest -q -p no:cacheprovider tests/test_cuda.py tests/test_geometry.py
bench train_swapper 60 train --config configs/lite_swapper.yaml --set batch_size=128 --steps 20
bench video_lite 60 video --size 1280x720 --faces 1
bench video_ghost 60 video --size 1280x720 --faces 1 --pack ghost-2
exit $failed
