#!/bin/sh
# Checks training on this machine's GPU in under 10 minutes: numerics and speed. check.py's docstring describes it.
#
#     cluster/gpu/check.sh                        on a GPU
#     cluster/gpu/check.sh --device cpu --quick   the same code, small, without a GPU
#
# PYTHON names a Python with torch; default: python3.
export PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" "$(dirname "$0")/check.py" "$@"
