#!/bin/sh
# What `make setup` does: sees to the system packages, and unpacks libtorch into .libtorch/.
# What is there already is left alone: packages, and a libtorch that LIBTORCH names.
set -eu
cd "$(dirname "$0")/.."
torch=2.11.0 cudart=13.0.96 cupti=13.0.85
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    # The library, and the headers that it comes with.
    ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib*/libclang*.so* /usr/lib/*/libclang*.so* 2>/dev/null |
        grep -qv libclang-cpp && ls /usr/lib*/*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h \
        >/dev/null 2>&1
}

has_daemon() { have "$1" || [ -x "/usr/sbin/$1" ]; }

# Each line: how to tell that it is there, and the Debian package that brings it.
missing=
need() { "$1" "$2" || missing="$missing $3"; }
need have c++ g++
need have pkg-config pkg-config
need have cmake cmake
need have nasm nasm
need have mpicc libopenmpi-dev
need have mpirun openmpi-bin
need libclang - libclang-dev
[ -n "${LIBTORCH:-}" ] || [ -e .libtorch/complete-$torch ] || {
    need have unzip unzip
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
}
data=${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}
[ -e "$data" ] || [ -e data/fashion-mnist/test/dataset.json ] || missing="$missing dataset-fashion-mnist"
# In CI, what tests make clusters of one machine with; elsewhere these tests are left out without it.
if [ -n "${CI:-}" ]; then
    need has_daemon slurmctld slurm-wlm
    need has_daemon munged munge
    need has_daemon ip iproute2
fi
if [ -n "$missing" ]; then
    have apt-get || fail "please install what these Debian packages hold:$missing"
    [ "$(id -u)" = 0 ] || have sudo || fail "please have these packages installed: apt-get install$missing"
    say "installing$missing"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

have cargo || fail "Rust is missing: install rustup (the toolchain itself is pinned in rust-toolchain.toml)"

# libtorch without Python: the part of PyTorch's wheel that a program links, and the two CUDA libraries that it
# asks for on every machine.
if [ -n "${LIBTORCH:-}" ]; then
    say "using LIBTORCH=$LIBTORCH"
elif [ ! -e .libtorch/complete-$torch ]; then
    say "fetching libtorch $torch (545 MB)"
    rm -rf .libtorch
    mkdir -p .libtorch/wheels
    for wheel in torch==$torch nvidia-cuda-runtime==$cudart nvidia-cuda-cupti==$cupti; do
        python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
            --platform "manylinux_2_28_$(uname -m)" --platform "manylinux2014_$(uname -m)" \
            --platform "manylinux_2_25_$(uname -m)" -d .libtorch/wheels "$wheel"
    done
    cd .libtorch
    unzip -q -o 'wheels/torch-*.whl' 'torch/include/*' 'torch/lib/libtorch.so' 'torch/lib/libtorch_cpu.so' \
        'torch/lib/libc10.so' 'torch/lib/libgomp*' 'torch-*/licenses/*'
    unzip -q -o 'wheels/nvidia_cuda_runtime-*.whl' 'nvidia/cu13/lib/*' 'nvidia/cu13/include/*'
    unzip -q -o 'wheels/nvidia_cuda_cupti-*.whl' 'nvidia/cu13/lib/libcupti*'
    rm -rf wheels
    touch complete-$torch
    cd ..
fi
say "ready"
