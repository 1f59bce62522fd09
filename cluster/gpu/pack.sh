#!/bin/sh
# Packs check.sh with the programs that it runs, for a machine with a GPU and without Rust, MPI or this repository.
#
#     cluster/gpu/pack.sh [codinet-gpu-check.tar.gz]
#
# There: tar xf codinet-gpu-check.tar.gz && codinet-gpu-check/check.sh. That machine needs a driver, an x86-64 Linux as new as this
# one, and a Python with torch 2.11, whose libtorch the programs use.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
archive=${1:-codinet-gpu-check.tar.gz}
most=31457280 # bytes: 30 MB, so that it can be sent by mail
programs="codinet-train codinet-data codinet-infer"

for program in $programs; do
    [ -x "$root/target/release/$program" ] || { echo "pack.sh: run make build first" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packed=$folder/codinet-gpu-check
mkdir -p "$packed/bin" "$packed/lib" "$packed/tests/bench" "$packed/tests/golden" "$packed/cluster"

# Libraries that every Linux has, and those that come with torch.
is_elsewhere() {
    case $1 in
    libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libutil.so* | libgcc_s.so* | libstdc++.so*) return 0 ;;
    libtorch* | libc10* | libgomp* | libcudart* | libcupti*) return 0 ;;
    *) return 1 ;;
    esac
}

for program in $programs; do
    strip -o "$packed/bin/$program" "$root/target/release/$program"
    ldd "$root/target/release/$program" | while read -r name arrow path _; do
        [ "$arrow" = "=>" ] && ! is_elsewhere "$name" || continue
        [ -e "$path" ] || { echo "pack.sh: $program needs $name, which this machine lacks" >&2; exit 1; }
        cp -L "$path" "$packed/lib/$name"
    done
done
mkdir "$packed/cluster/gpu"
cp "$root"/cluster/gpu/*.py "$root/cluster/gpu/check.sh" "$packed/cluster/gpu"
cp "$root/tests/bench/ddp.py" "$packed/tests/bench"
cp "$root/tests/golden/reference.py" "$packed/tests/golden"
cp "$root"/LICENSE* "$packed"
cat >"$packed/check.sh" <<'CHECK'
#!/bin/sh
# Checks training on this machine's GPU: cluster/gpu/check.py describes it. PYTHON names a Python with torch 2.11; default: python3.
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/cluster/gpu/check.sh" --codinet-train "$here/bin/codinet-train" "$@"
CHECK
chmod +x "$packed/check.sh"
tar -C "$folder" -czf "$archive" codinet-gpu-check
bytes=$(wc -c <"$archive")
[ "$bytes" -le $most ] || { echo "pack.sh: $archive has $bytes bytes, more than $most" >&2; exit 1; }
echo "$archive: $((bytes / 1048576)) MB"
