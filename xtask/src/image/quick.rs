//! `cargo xtask image --quick`: the program that is built anyway, with the libraries of this machine, for the clusters on it.
//! Made in a second, and good for nothing else.

use super::oci;
use crate::{Result, paths, sh};
use std::path::{Path, PathBuf};

/// What it is called unless somebody says otherwise: never the name of an image that is published.
pub const NAME: &str = "causeway.test/causeway:1";

/// Writes `target/image/quick.tar`.
///
/// # Errors
/// If the program is not built, or the file system's.
pub fn run(name: Option<&str>, out: Option<&Path>) -> Result<()> {
    let program = paths::target().join("release").join("causeway");
    if !program.is_file() {
        return Err("the daemon is not built: cargo xtask build".to_owned());
    }
    let archive = match out {
        Some(path) => path.to_owned(),
        None => super::folder()?.join("quick.tar"),
    };
    let libraries = libraries(&program)?;
    let names: Vec<String> =
        libraries.iter().map(|path| path.display().to_string().trim_start_matches('/').to_owned()).collect();
    let mut files: Vec<(&str, &Path, u32)> = vec![("usr/local/bin/causeway", &program, 0o755)];
    files.extend(names.iter().zip(&libraries).map(|(name, path)| (name.as_str(), path.as_path(), 0o755)));
    let layer = archive.with_extension("layer");
    oci::layer(&layer, &files)?;
    let entry = oci::Entry { program: &["/usr/local/bin/causeway"], command: &["node"], ..oci::Entry::default() };
    let name = name.unwrap_or(NAME);
    let image = oci::Image { name, created: "1970-01-01T00:00:00Z", labels: &[], entry };
    let digest = oci::write(&archive, &image, &[&layer], oci::Packing::Plain)?;
    std::fs::remove_file(&layer).map_err(|error| format!("cannot remove {}: {error}", layer.display()))?;
    println!("{name}\n{digest}\n{}", archive.display());
    Ok(())
}

/// Files the dynamic linker loads for a program, itself among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = sh::output("ldd", &[program]).ok_or("ldd does not run")?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
