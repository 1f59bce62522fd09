#!/bin/sh
# `make setup`: installs missing system packages and unpacks libtorch into .libtorch/. With the argument `data` it also installs
# Debian's package of Fashion-MNIST. Existing packages and an existing libtorch 2.11 (LIBTORCH) are reused.
set -eu
cd "$(dirname "$0")/.."
torch=2.11.0 cudart=13.0.96 cupti=13.0.85
# libtorch's CUDA libraries are fetched if the driver has a GPU, or with CUDA=1, as on a cluster's login node; never with CUDA=0.
gpus=$({ ls /proc/driver/nvidia/gpus || nvidia-smi --list-gpus; } 2>/dev/null | grep -c . || true)
cuda=${CUDA:-$gpus}
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; elif [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi; }

# Whether .libtorch is complete, with the CUDA libraries if CUDA=1 asks for them.
has_libtorch() { [ -e .libtorch/complete-$torch-cuda ] || { [ "${CUDA:-0}" = 0 ] && [ -e .libtorch/complete-$torch ]; }; }

libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    # The library, and its own headers.
    ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib*/libclang*.so* /usr/lib/*/libclang*.so* 2>/dev/null |
        grep -qv libclang-cpp && ls /usr/lib*/*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h \
        >/dev/null 2>&1
}

has_daemon() { have "$1" || [ -x "/usr/sbin/$1" ]; }

# Each line: a test whether a tool is installed, and the Debian package that contains it.
missing=
need() { "$1" "$2" || missing="$missing $3"; }
need have c++ g++
need have pkg-config pkg-config
need have cmake cmake
need have nasm nasm
need have "${MPICC:-mpicc}" libopenmpi-dev
need have mpirun openmpi-bin
need libclang - libclang-dev
[ -n "${LIBTORCH:-}" ] || has_libtorch || {
    need have unzip unzip
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
}
data=${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}
[ "${1:-}" != data ] || [ -e "$data" ] || missing="$missing dataset-fashion-mnist"
# CI also needs the packages of tests that build a cluster on one machine; elsewhere these tests are skipped without them.
if [ -n "${CI:-}" ]; then
    need has_daemon slurmctld slurm-wlm
    need has_daemon munged munge
    need has_daemon ip iproute2
    need have strace strace
fi
if [ -n "$missing" ]; then
    have apt-get || fail "install the equivalents of these Debian packages:$missing"
    [ "$(id -u)" = 0 ] || have sudo || fail "ask an administrator to run: apt-get install$missing"
    say "installing$missing"
    { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
        fail "ask an administrator to run: apt-get install$missing"
fi

have cargo || fail "Rust is missing: install rustup (the toolchain itself is pinned in rust-toolchain.toml)"

# libtorch without Python: the libraries of PyTorch's wheel that a program links, and the two CUDA libraries that they
# need on every machine. For GPUs: all libraries of the wheel and of its dependencies.
fetch() {
    platforms=
    for n in 17 18 19 20 21 22 23 24 25 26 27 28; do
        platforms="$platforms --platform manylinux_2_${n}_$(uname -m)"
    done
    python3 -m pip download -q --only-binary=:all: --python-version 3.11 --implementation cp $platforms \
        --platform "manylinux2014_$(uname -m)" -d .libtorch.new/wheels "$@"
}
if [ -n "${LIBTORCH:-}" ]; then
    say "using LIBTORCH=$LIBTORCH"
elif ! has_libtorch; then
    rm -rf .libtorch.new
    mkdir -p .libtorch.new/wheels
    if [ "$cuda" = 0 ]; then
        say "fetching libtorch $torch (545 MB)"
        fetch --no-deps torch==$torch nvidia-cuda-runtime==$cudart nvidia-cuda-cupti==$cupti
        libraries='torch/lib/libtorch.so torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp*'
        complete=complete-$torch
    else
        say "fetching libtorch $torch with its CUDA libraries (2.6 GB; CUDA=0 skips them)"
        fetch torch==$torch
        libraries='torch/lib/*.so*' complete=complete-$torch-cuda
    fi
    cd .libtorch.new
    set -f
    unzip -q -o 'wheels/torch-*.whl' 'torch/include/*' $libraries 'torch-*/licenses/*' -x 'torch/lib/libtorch_python.so'
    set +f
    for wheel in wheels/nvidia_*.whl; do
        unzip -q -o "$wheel" 'nvidia/*/lib/*' 'nvidia/*/include/*' || [ $? = 11 ] # some have no headers
    done
    rm -rf wheels
    touch $complete
    cd ..
    rm -rf .libtorch && mv .libtorch.new .libtorch
elif [ "$gpus" != 0 ] && [ -z "${CUDA:-}" ] && [ ! -e .libtorch/complete-$torch-cuda ]; then
    say "this machine has a GPU; CUDA=1 fetches libtorch's CUDA libraries (2.6 GB)"
fi
say "ready"
