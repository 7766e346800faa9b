//! Embeds the kernel programs. They are built by `cargo xtask build` for another target, so they are found, not made, here.
//! Without them the crate still builds, and says at run time what is missing.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_embedded)");
    println!("cargo::rerun-if-env-changed=CAUSEWAY_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("CAUSEWAY_EBPF_OBJECT")
        .map_or_else(|| manifest.join("..").join("target").join("ebpf").join("causeway-ebpf.o"), PathBuf::from);
    // A file that does not exist yet is watched too: the build script then runs again as soon as it appears.
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("causeway-ebpf.o");
    match fs::copy(&object, &copy) {
        Ok(_) => println!("cargo::rustc-cfg=ebpf_embedded"),
        Err(error) => println!(
            "cargo::warning=kernel programs not found ({}: {error}): the daemon will not be able to redirect; run `cargo xtask build`",
            object.display()
        ),
    }
}
