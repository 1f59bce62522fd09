#!/bin/sh
# Whether training on this machine's GPU is right, and how fast it is, in under 10 minutes: check.py's docstring says how.
#
#     cluster/gpu/check.sh                        on a GPU
#     cluster/gpu/check.sh --device cpu --quick   the same code, small, where there is none
#
# PYTHON names a Python with torch; else python3.
export PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" "$(dirname "$0")/check.py" "$@"
