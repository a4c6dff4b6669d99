#!/usr/bin/env bash
# The wheel in fresh environments outside the checkout: jax alone is enough for the losses; the program runs by name.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH=
cp -r "$root"/{ancor_jax,configs,pyproject.toml,README.md,LICENSE} "$scratch/"
python -m pip wheel --quiet --no-deps --wheel-dir "$scratch/wheels" "$scratch"
wheel=$(echo "$scratch"/wheels/*.whl)
mkdir "$scratch/outside" && cd "$scratch/outside"

# refused TEXT COMMAND: the command ends with code 1; its last line is an error that contains TEXT.
refused() {
    local text=$1 code=0
    shift
    "$@" > out.txt 2>&1 || code=$?
    cat out.txt
    [ "$code" = 1 ] && ! grep -q Traceback out.txt && tail -1 out.txt | grep '^error: ' | grep -F -- "$text" > found.txt
}

echo '-- the core: jax alone'
python -m venv "$scratch/core" && "$scratch/core/bin/pip" install --quiet "$wheel"
"$scratch/core/bin/python" - <<'CHECK'
import importlib.metadata
import importlib.util
import sys

import jax

import ancor_jax
from ancor_jax import losses, queue

keys = queue.init(jax.random.key(0), 3, 8, 4)
print(losses.class_contrastive_loss(keys.keys[:, 0], keys.keys[:, 1], keys.keys, jax.numpy.arange(3), keys.keys[:, 2]))
assert not {'flax', 'optax', 'orbax', 'absl'} & set(sys.modules), 'the losses need jax alone'
assert importlib.util.find_spec('configs') is None, 'no package of a common name may be installed'
assert importlib.metadata.version('ancor_jax') == ancor_jax.__version__
CHECK
refused "pip install 'ancor_jax[train,report]'" "$scratch/core/bin/ancor-jax" --config=digits_coarse

echo '-- the program, with the extra "train"'
python -m venv "$scratch/full" && "$scratch/full/bin/pip" install --quiet "$wheel[train]"
program="$scratch/full/bin/ancor-jax"
"$program" --help > help.txt && grep -q "Exit codes" help.txt
"$program" --config=digits_coarse --config.train.epochs=1 --config.eval.episodes=20 --workdir="$scratch/run"
"$program" --mode=eval --workdir="$scratch/run" --config.eval.shots=5
grep -q '"shots": 5' "$scratch/run/evaluation.json"
refused "Did you mean --config.train.epochs?" "$program" --config=digits_coarse --config.epochs=1
refused "name one of cifar100_coarse, digits_coarse" "$program" --config=digit
refused "--config=digits_coarse" "$program" --config=configs/digits_coarse.py
cat > own.py <<'CONFIG'
from ancor_jax.config.experiments import as_config_dict
from ancor_jax.configs import digits_coarse


def get_config():
    config = digits_coarse.experiment()
    config.train.epochs = 0
    return as_config_dict(config)
CONFIG
refused "train.epochs must be greater than 0" "$program" --config=own.py

echo '-- the command that the program advises, then the report'
refused "pip install 'ancor_jax[train,report]'" "$program" --mode=report --workdir="$scratch/run"
"$scratch/full/bin/pip" install --quiet 'ancor_jax[train,report]'
"$program" --mode=report --workdir="$scratch/run"
echo 'the wheel works'
