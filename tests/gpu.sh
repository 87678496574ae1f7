#!/usr/bin/env bash
# What is owed on a GPU, in order of worth: eight minutes on one H200, of which each part has its own
# limit. Prints the tables that docs/performance.md takes, and keeps them in a folder.
#
#   tests/gpu.sh STORE [FOLDER]
#
# STORE is one of `uscl prepare`, of 224² and with labels. A machine without a GPU tries it with DEVICE,
# PYTHON, SETTINGS of all parts, SHORT ones of the runs alone, and STEPS to repeat.
set -uo pipefail
store=${1:?usage: tests/gpu.sh STORE [FOLDER]}
folder=${2:-gpu}
python=${PYTHON:-python3} device=${DEVICE:-cuda} steps=${STEPS:-30}
uscl="$python -m uscl_zoo.training"
read -ra settings <<<"${SETTINGS:-}"
read -ra short <<<"${SHORT:-epochs=3}"
short=("${settings[@]}" "${short[@]}")
mkdir -p "$folder"
failed=0

run() { # NAME SECONDS COMMAND...: shows the end of what it prints, without the bar
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name: $*"
  timeout "$limit" "$@" >"$folder/$name.log" 2>&1
  local status=$?
  tr '\r' '\n' <"$folder/$name.log" | grep -v 'it/s\|step/s\|s/step\|s/it\|^$' | tail -25
  echo "-- $name: status $status after $((SECONDS - began)) s"
  [ $status = 0 ] || failed=1
}

pretrain() { # NAME SECONDS OPTIONS...
  local name=$1 limit=$2
  shift 2
  run "$name" "$limit" $uscl pretrain --recipe us4_resnet18 --data "$store" --device "$device" \
    -o "$folder/run-$name" "$@" "${short[@]}"
}

same() { # NAME OTHER: whether two runs ended with the same weights to the bit
  run "same-$1-$2" 60 "$python" -c "
import sys, torch
states = [torch.load(f'$folder/run-{n}/checkpoint.pt', weights_only=True)['network'] for n in ('$1', '$2')]
apart = max((a.float() - b.float()).abs().max().item() for a, b in zip(*(s.values() for s in states)))
print(f'largest difference of a weight: {apart:g}')
sys.exit(apart != 0)"
}

run versions 60 "$python" -c "
import torch, timm
print(torch.__version__, timm.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"
# does a run end its epochs, whose last batch is of another size?
pretrain whole 120
# what does compiling bring over a graph of eager kernels, and what does it cost at the start?
run resnet18 120 $uscl throughput --data "$store" --recipe us4_resnet18 --device "$device" \
  --repeats "$steps" --compile --trace "$folder/trace-resnet18" "${settings[@]}"
run resnet18-eager 60 $uscl throughput --data "$store" --recipe us4_resnet18 --device "$device" \
  --repeats "$steps" --no-compile --trace "$folder/trace-eager" "${settings[@]}"
# the same again, with what the first left in torch's cache
pretrain compiled 120 --compile
pretrain again 90 --compile
run resnet50 120 $uscl throughput --data "$store" --recipe us4_resnet50 --device "$device" \
  --repeats "$steps" --trace "$folder/trace-resnet50" "${settings[@]}"
# the same bits twice
pretrain deterministic 60 --deterministic --no-compile
pretrain repeated 60 --deterministic --no-compile
same deterministic repeated
run nccl 90 "$python" -m torch.distributed.run --standalone --nproc-per-node 1 -m uscl_zoo.training \
  pretrain --recipe us4_resnet18 --data "$store" --device "$device" -o "$folder/run-nccl" "${short[@]}"
echo "== $([ $failed = 0 ] && echo all passed || echo something failed), in $SECONDS s"
exit $failed
