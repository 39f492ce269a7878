#!/usr/bin/env bash
# Fill a folder with the wheels that gpu.sh takes to a machine without a network: what is needed there beside torch,
# Lightning, NumPy, scikit-learn and the like, in the versions of constraints.txt, for Python 3.12 on Linux.
#
#   benchmarks/wheels.sh [FOLDER]        # .wheels, 21 MB; PYTHON names the Python whose pip is used
set -eu

folder=$(realpath -m "${1:-.wheels}")
if compgen -G "$folder/*.whl" >/dev/null; then  # of two versions of a package neither could be installed
  echo "$folder has wheels already; remove it first" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
download=("${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --dest "$folder" -c constraints.txt
  --only-binary=:all: --implementation cp --python-version 3.12
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
"${download[@]}" alembic click colorlog plotly pydantic pytest ruamel.yaml
"${download[@]}" --no-deps lightning-fabric optuna pytorch-optimizer  # whose needs are there: torch is one of them
du -sh "$folder"
