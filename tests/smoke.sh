#!/usr/bin/env bash
# The wheel in a fresh environment outside the checkout: jax alone is enough for the losses; the program runs by name.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r "$root"/{ancor_jax,configs,pyproject.toml,README.md,LICENSE} "$scratch/"
python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$scratch/wheels" "$scratch"
wheel=$(echo "$scratch"/wheels/*.whl)
mkdir "$scratch/outside" && cd "$scratch/outside"

python -m venv "$scratch/core" && "$scratch/core/bin/pip" install --quiet --disable-pip-version-check "$wheel"
"$scratch/core/bin/python" - <<'CHECK'
import sys

import jax

from ancor_jax import losses, queue

keys = queue.init(jax.random.key(0), 3, 8, 4)
print(losses.class_contrastive_loss(keys.keys[:, 0], keys.keys[:, 1], keys.keys, jax.numpy.arange(3), keys.keys[:, 2]))
assert not {'flax', 'optax', 'orbax'} & set(sys.modules), 'the losses need jax alone'
CHECK

python -m venv "$scratch/full" && "$scratch/full/bin/pip" install --quiet --disable-pip-version-check "$wheel[train]"
"$scratch/full/bin/ancor-jax" --config=digits_coarse --config.train.epochs=1 --config.eval.episodes=20 \
    --workdir="$scratch/run"
test -f "$scratch/run/results.json"
echo 'the wheel works'
