#!/bin/sh
# Makes reference/.venv with the pinned packages (about 6 GB on disk with the standard torch wheel).
# Run again after a change of requirements.txt: it brings the environment up to date.
# Usage: reference/venv.sh [PYTHON]      (PYTHON defaults to python3; 3.11 or newer)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "venv.sh: $python is older than 3.11" >&2; exit 1; }
[ -x "$here/.venv/bin/python" ] || "$python" -m venv "$here/.venv"
"$here/.venv/bin/python" -m pip install --quiet -r "$here/requirements.txt"
"$here/.venv/bin/python" - <<'PY'
import torch, transformers
print(f"ready: torch {torch.__version__}, transformers {transformers.__version__}")
PY
