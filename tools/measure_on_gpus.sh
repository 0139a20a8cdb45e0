#!/usr/bin/env bash
# Every recipe on real cards, at real size, with random weights: what each takes, beside what --dry-run says of it, and
# a run of it from prompts to negative weights and samples; on one card, what an update and a step cost beside other ways.
#
#     tools/measure_on_gpus.sh WORK          one card: the LoRA recipes, and all weights of SD1.5 and SDXL
#     tools/measure_on_gpus.sh WORK 8        eight: ZeRO-3 and DDP; those for four cards run on four of them
#
# WORK takes 20 GB a model. Figures go to docs/results/recipes, logs to WORK/logs; what is there is not measured again.
set -uo pipefail
cd "$(dirname "$0")/.."
work=${1:?give a folder for the models and runs}
cards=${2:-1}
mkdir -p "$work/logs"
nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv | tee "$work/logs/cards.csv"

measure() { # CARDS FAMILY MODEL RECIPE
    local cards=$1 family=$2 model=$3 recipe=$4
    local figures=docs/results/recipes/$recipe.json log=$work/logs/$recipe.log start=(python)
    [ -e "$figures" ] && return
    [ -e "$work/$model/model_index.json" ] || python tools/random_model.py "$model" "$work/$model" || return
    [ "$cards" -gt 1 ] && start=(torchrun --standalone --nproc-per-node "$cards")
    echo "== $recipe on $cards"
    "${start[@]}" tools/benchmark.py recipe "recipes/$recipe.yaml" --family "$family" --model "$work/$model" 2>&1 | tee "$log" | tail -n 12
    "${start[@]}" tools/train.py --family "$family" --config "recipes/$recipe.yaml" --model "$work/$model" \
        --output "$work/runs/$recipe" --set steps=4 --set sample_every=2 --set "$(shorter "$recipe")" 2>&1 | tee -a "$log" | tail -n 4
    python -m "selfnpo_$family.cli" sample --model "$work/$model" --npo "$work/runs/$recipe" --prompt "a fox trots through snow" \
        --steps 4 --output "$work/samples/$recipe" 2>&1 | tee -a "$log" | tail -n 4
}

shorter() { # RECIPE: few samples or trajectories, as four updates need no more
    grep -q "rollout: pool" "recipes/$1.yaml" && echo pool_size=64 || echo samples=32
}

if [ "$cards" -eq 1 ]; then
    for recipe in sd15-lora sd15-full; do measure 1 image sd15 $recipe; done
    for recipe in sdxl-lora sdxl-full; do measure 1 image sdxl $recipe; done
    for model in cogvideox-2b cogvideox-5b cogvideox-1.5-5b; do measure 1 video $model $model-lora; done
    for shape in sd15 sdxl cogvideox-2b-small cogvideox-2b cogvideox-5b-small; do
        for suite in update sample; do
            [ -e "docs/results/performance/$suite-$shape.json" ] && continue
            python tools/benchmark.py $suite --shape $shape --work "$work/shapes" 2>&1 | tee "$work/logs/$suite-$shape.log" | tail -n 12
        done
    done
    python tools/benchmark.py page
else
    for model in sd15 sdxl; do measure 4 image $model $model-node; done
    for model in cogvideox-2b cogvideox-5b; do measure "$cards" video $model $model-zero3; done
    measure "$cards" video cogvideox-1.5-5b cogvideox-1.5-5b-ddp
fi
