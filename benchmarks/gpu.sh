#!/usr/bin/env bash
# What only a GPU can tell, in under eight minutes and without a network: the tests marked gpu, how near a step comes to
# its matrix products (floor), several networks at once (stack), and what LBE costs (overhead).
#
#   benchmarks/gpu.sh [--device cuda|cpu] [--out FOLDER] [--wheels FOLDER] [--commit HASH] [--small]
#
# Every part writes what it has as it goes, is stopped after its own time and what those before it have left of theirs,
# and stops no other; summary.txt says how each of them ended. PYTHON names the Python, which has torch; what it lacks is
# installed from the folder of wheels (wheels.sh fills it) into a temporary one. --small is for trying the script,
# --commit for a copy that git does not know.
set -u

usage() { sed -n '5s/^# *//p' "$0"; }
device=cuda out=runs/gpu wheels="" small=""
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:?$(usage)}; shift 2 ;;
    --out) out=${2:?$(usage)}; shift 2 ;;
    --wheels) wheels=$(realpath -m "${2:?$(usage)}"); shift 2 ;;
    --commit) export BENCHMARK_COMMIT=${2:?$(usage)}; shift 2 ;;
    --small) small=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

mkdir -p "$out" || exit 1
out=$(realpath "$out")
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3} log=$out/gpu.log summary=$out/summary.txt failed=0 spare=0
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
: >"$log"
: >"$summary"
export PYTHONPATH=$PWD/src:$scratch/site${PYTHONPATH:+:$PYTHONPATH}
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton

tell() { echo "$*" | tee -a "$log" "$summary"; }

part() {  # name, seconds, command
  local name=$1 limit=$(($2 + spare)) begin=$SECONDS code=0 took
  shift 2
  echo "== $name: $*" >>"$log"
  timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1 || code=$?  # not through a pipe, which a child could keep open
  took=$((SECONDS - begin)) spare=$((limit - took > 0 ? limit - took : 0))
  [ $code = 0 ] || failed=1
  tell "$(printf '%-9s %4d s   exit code %d' "$name" $took $code)"
}

command -v nvidia-smi >/dev/null && nvidia-smi >>"$log" 2>&1
tell "$("$python" - "$device" 2>&1 <<'PYTHON'
import platform, sys, torch
cuda = sys.argv[1].startswith("cuda")
if cuda and not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no CUDA device here")
name = torch.cuda.get_device_name(sys.argv[1]) if cuda else "CPU"
print(f"{name}, Python {platform.python_version()}, torch {torch.__version__}")
PYTHON
)"
grep -q ", torch " "$summary" || exit 1

[ -z "$wheels" ] || part install 40 "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
  --find-links "$wheels" --no-compile --target "$scratch/site" "$wheels"/*.whl

mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
# Without the machine's plugins, which are another pytest's, and with warnings told of and not errors, so that what a
# test is about is seen.
part tests 80 env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -v -m gpu -W default -p no:cacheprovider \
  --durations=5 --junitxml "$out/tests.xml" "${marked[@]}"

if [ -n "$small" ]; then
  floor=(--depths 3 --width 32 --batch 32 --members 2 --precisions 32-true bf16-mixed --rounds 3)
  stack=(--networks 3x16x32 --members 1 4 --rounds 3)
  overhead=(--case fnn3x16 --rounds 3)
else
  floor=(--depths 50 500 --seconds 4 --limit 50)
  stack=(--networks 30x100x128 --members 16 256 1 64 4 --rounds 20 --steps 5 --seconds 5 --limit 90)
  overhead=(--rounds 40 --steps 5 --seconds 4 --limit 60)
fi
part floor 105 "$python" benchmarks/floor.py --device "$device" --out "$out/floor.json" "${floor[@]}"
part stack 165 "$python" benchmarks/stack.py --device "$device" --out "$out/stack.json" "${stack[@]}"
part overhead 75 "$python" benchmarks/overhead.py --device "$device" --out "$out/overhead.json" "${overhead[@]}"
exit $failed
