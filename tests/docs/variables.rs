//! docs/env.md is made from the tables in the code: `UPDATE=1 cargo test --release --workspace --test docs`.

use codinet_config::env;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What programs of others read, that users of these have to know of.
const OTHERS: &str = "
Read by libraries, or while the programs are built:

| Variable | By | What |
|---|---|---|
| `AWS_…`, `GOOGLE_…` | object_store | credentials, region and endpoint of stores: `data` in them, `run.copy_to` (cargo feature `remote`) |
| `LD_LIBRARY_PATH` | the loader | where `libnccl.so.2` and, for `run.cuda_kernels`, `libnvrtc.so.13` may be |
| `LIBTORCH` | the build | a libtorch to use in place of `.libtorch/torch` |
| `LIBCLANG_PATH` | the build | where libclang is, for MPI's bindings |
| `MPICC` | the build | the compiler wrapper of the MPI to build with, such as `mpicc.mpich` |
| `NVIDIA_TF32_OVERRIDE` | NVIDIA's libraries | 0: fp32 is never computed as TF32, which it is on GPUs otherwise |
| `PYTHON` | cluster/gpu/check.sh, `make test` | a Python with torch; else python3 |
| `NCCL_…`, `OMPI_MCA_…`, `UCX_…` | NCCL, Open MPI, UCX | which network is used, and how |
";

fn table() -> String {
    let rows: BTreeMap<&str, _> = env::ALL.iter().map(|variable| (variable.name, variable.readers)).collect();
    let mut text = "# Environment variables\n\nGenerated from `configs/src/env.rs` by tests/docs/variables.rs. None has to be set.\n\n\
                    | Variable | Program | Purpose |\n|---|---|---|\n"
        .to_owned();
    for (name, readers) in rows {
        for (program, purpose) in readers {
            let _ = writeln!(text, "| `{name}` | {program} | {purpose} |");
        }
    }
    text + OTHERS
}

#[test]
fn env_page_is_up_to_date() {
    let path = Path::new(ROOT).join("docs/env.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, table()).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap() == table(),
        "docs/env.md is out of date: run this test with UPDATE=1"
    );
}

/// Programs read variables only through the table.
#[test]
fn variables_are_read_only_through_the_table() {
    let crates = ["trainer", "trainer/tools", "launcher", "dataloader", "dataloader/cli", "configs"];
    let mut folders = crates.map(|name| Path::new(ROOT).join(name).join("src")).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("src/env.rs") {
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.contains("env::var"), "{} reads a variable past env.rs", path.display());
            }
        }
    }
}
