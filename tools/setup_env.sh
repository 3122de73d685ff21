#!/usr/bin/env bash
# Makes the virtual environment that everything runs in. `make setup` calls it; see docs/installation.md.
#   PYTHON=...      interpreter to build on (3.11 or newer); default: the newest found
#   VENV=...        folder of the environment; default .venv
#   DETECTRON2=git  detectron2 main from GitHub with compiled operators, instead of the 0.6 release
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
step="starting"
say() { printf '[setup] %s\n' "$*"; }
trap 'code=$?; [ $code -eq 0 ] || printf "[setup] FAILED while %s (exit %s). Fix that and run make setup again; it continues where it stopped.\n" "$step" "$code" >&2' EXIT

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || { echo "[setup] PYTHON=$PYTHON is not a Python 3.11+ with venv" >&2; exit 1; }
    echo "$PYTHON"; return
  fi
  for candidate in python3.12 python3.11 python3 python3.13; do
    if command -v "$candidate" >/dev/null && fits "$candidate"; then echo "$candidate"; return; fi
  done
  echo "[setup] no Python 3.11+ with venv found; install one (Debian: apt-get install python3-venv) or give PYTHON=" >&2
  exit 1
}

step="looking for Python 3.11+"
wanted=$(cat requirements.txt requirements-detectron2.txt setup.py tools/setup_env.sh | cksum | cut -d' ' -f1)-${DETECTRON2:-release}
stamp="$venv/.setup-done"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi
python=$(find_python)
say "$("$python" --version) at $(command -v "$python"); environment: $venv"

step="making the virtual environment $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
rm -f "$stamp"
here="$venv/bin/python"
fits "$here" || { echo "[setup] $venv has an older Python; remove it or give another VENV=" >&2; exit 1; }

step="installing uv (the installer)"
say "1/4 uv"
"$here" -m pip install --quiet --disable-pip-version-check "uv==0.13.8" 2> >(grep -v "is ignored: it is neither" >&2)
uv() { VIRTUAL_ENV="$(cd "$venv" && pwd)" "$here" -m uv "$@"; }

step="installing the packages of requirements.txt (about 3 GB are downloaded the first time)"
say "2/4 torch and the other packages of requirements.txt"
uv pip install --python "$here" --quiet -r requirements.txt

if [ "${DETECTRON2:-release}" = git ]; then
  step="building detectron2 main from GitHub"
  say "3/4 detectron2 main (compiled operators; takes some minutes)"
  uv pip install --python "$here" --quiet --no-deps "lvis==0.5.3" "centernet2==1.0.post20221121"
  uv pip install --python "$here" --no-deps --no-build-isolation \
    "git+https://github.com/facebookresearch/detectron2.git"
else
  step="installing detectron2 0.6"
  say "3/4 detectron2 0.6"
  uv pip install --python "$here" --quiet --no-deps --no-build-isolation \
    -C=--global-option=build_py -C=--build-option=--skip-build -r requirements-detectron2.txt
fi

step="installing our packages in editable mode"
say "4/4 our packages (editable)"
uv pip install --python "$here" --quiet --no-deps --no-build-isolation -e .

step="checking the result"
"$here" tools/doctor.py --required-only
echo "$wanted" > "$stamp"
say "done"
