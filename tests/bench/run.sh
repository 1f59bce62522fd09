#!/bin/sh
# `make bench`: every benchmark that needs no GPU, in sequence, on an otherwise idle machine. Results go to the terminal and to
# target/bench/. The programs to compare with come from PyPI into .bench/ (5 GB), unless PYTHON names a Python that has them.
#   tests/bench/run.sh                          # 20 minutes on two cores
#   tests/bench/run.sh --quick                  # one round of each, to check that all benchmarks run
#   PHOTOS=photos tests/bench/run.sh            # the loaders on a folder of class folders, instead of cut wallpapers
set -eu
cd "$(dirname "$0")/../.."
rounds=3
[ "${1:-}" != --quick ] || rounds=1
python=${PYTHON:-.bench/bin/python}
if [ -z "${PYTHON:-}" ] && [ ! -x .bench/bin/pip ]; then
    python3 -m venv .bench || { echo "error: python3 cannot make a venv; apt-get install python3-venv, or set PYTHON" >&2; exit 1; }
fi
if [ -z "${PYTHON:-}" ]; then
    .bench/bin/pip install --quiet torch==2.11.0 torchvision==0.26.0 nvidia-dali-cuda130 webdataset numpy pillow
fi
out=target/bench
mkdir -p $out

# run NAME COMMAND...: runs the command, and writes its output to the terminal and to target/bench/NAME.txt.
run() {
    name=$1
    shift
    echo "== $name: $*"
    { "$@" || echo $? >$out/failed; } 2>&1 | tee $out/$name.txt
    [ ! -e $out/failed ] || { rm $out/failed; echo "error: $name failed; see $out/$name.txt" >&2; exit 1; }
}

photos=${PHOTOS:-$out/photos}
if [ ! -d "$photos" ]; then
    mkdir -p $out/wallpapers
    (cd $out/wallpapers && apt-get download mate-backgrounds plasma-workspace-wallpapers >/dev/null && for deb in *.deb; do dpkg -x "$deb" .; done)
    $python dataloader/benches/photographs.py $out/photos.part --wallpapers $out/wallpapers
    mv $out/photos.part $out/photos
fi
run same-network $python tests/bench/compare.py check
run training $python tests/bench/compare.py speed --rounds $rounds
run loader $python dataloader/benches/peers.py --photos "$photos" --work "$out/loader-$(basename "$photos")" --rounds $rounds
run inference taskset -c 0 target/release/codinet-infer bench --threads 1 --rounds $((3 * rounds))
run diversity "${CARGO:-cargo}" bench --locked -p codinet-trainer --bench diversity
