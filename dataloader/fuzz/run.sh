#!/bin/sh
# Runs every fuzz target under AddressSanitizer for some seconds: dataloader/fuzz/run.sh [SECONDS [TARGET...]]
#
# libjpeg-turbo is built for it with AddressSanitizer and coverage, and without SIMD, whose assembly has neither. Needs
# clang, cmake and python3; cargo-fuzz and a nightly toolchain are not needed. Inputs that fail are left in artifacts/.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# -eq 0 ] || shift
targets=${*:-"image shard index list published"}

here=$PWD
build=$here/target/libjpeg
host=$(rustc -vV | sed -n 's/^host: //p')
source=$(cargo metadata --format-version 1 --manifest-path Cargo.toml | python3 -c '
import json, os, sys
[package] = [p for p in json.load(sys.stdin)["packages"] if p["name"] == "turbojpeg-sys"]
print(os.path.join(os.path.dirname(package["manifest_path"]), "libjpeg-turbo"))')

instrumented="-g -O1 -fno-omit-frame-pointer -fsanitize=address,fuzzer-no-link"
if [ ! -e "$build/lib/libturbojpeg.a" ]; then
    cmake -S "$source" -B "$build/build" -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Fuzz \
        -DCMAKE_C_FLAGS_FUZZ="$instrumented" -DWITH_SIMD=OFF -DENABLE_SHARED=OFF
    cmake --build "$build/build" --target turbojpeg-static
    mkdir -p "$build/lib" "$build/include"
    cp "$source"/src/jpeglib.h "$source"/src/jmorecfg.h "$source"/src/jerror.h "$source"/src/turbojpeg.h \
        "$build/build/jconfig.h" "$build/include"
    cp "$build/build/libturbojpeg.a" "$build/lib"
fi

export TURBOJPEG_SOURCE=explicit TURBOJPEG_STATIC=1
export TURBOJPEG_LIB_DIR="$build/lib" TURBOJPEG_INCLUDE_DIR="$build/include"
flags_of_target=$(echo "$host" | tr - _)
export "CC_$flags_of_target=clang" "CFLAGS_$flags_of_target=$instrumented"
# The flags of cargo-fuzz. The variable allows -Z on a stable toolchain.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1 --cfg fuzzing"
cargo build --release --target "$host"

# A tar of every kind of member that shards have: short and long names, hard and symbolic links.
make_tar() {
    folder=$(mktemp -d)
    long=$(printf 'folder/%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
    mkdir -p "$folder/$long"
    for name in a "${long}b"; do
        echo image >"$folder/$name.jpg"
        echo 7 >"$folder/$name.cls"
    done
    ln "$folder/a.jpg" "$folder/c.jpg"
    ln "$folder/a.cls" "$folder/c.cls"
    ln -s a.jpg "$folder/d.jpg"
    for format in pax gnu ustar; do
        tar --format=$format -C "$folder" -cf "corpus/shard/$format.tar" a.jpg a.cls c.jpg c.cls d.jpg "${long}b.jpg" "${long}b.cls"
    done
    rm -r "$folder"
}

for target in $targets; do
    mkdir -p "corpus/$target" "artifacts/$target"
    case $target in
        image) cp ../../tests/golden/jpeg/*.jpg corpus/image/ ;;
        published) cp ../../tests/golden/svhn_scipy.mat corpus/published/ ;;
        shard) make_tar ;;
    esac
    echo "== $target, $seconds s"
    "target/$host/release/$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=4096 \
        -artifact_prefix="artifacts/$target/" "corpus/$target"
done
