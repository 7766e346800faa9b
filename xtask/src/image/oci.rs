//! Images in the layout of the Open Container Initiative, as one archive that container runtimes import: `oci-layout`,
//! `index.json`, and blobs that are named by their content. `manifest.json` says the same to `docker load`, which reads nothing else
//! where images are kept in Docker's own store.

use super::tar;
use crate::{Result, sh};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is written into an image beside its layers.
pub struct Image<'a> {
    /// Registry, name and tag.
    pub name: &'a str,
    /// RFC 3339.
    pub created: &'a str,
    /// Names and values, in the order in which they are written.
    pub labels: &'a [(String, String)],
    /// What a container runs.
    pub entry: Entry<'a>,
}

/// What a container runs, and as whom.
#[derive(Default)]
pub struct Entry<'a> {
    /// What arguments of a pod are added to.
    pub program: &'a [&'a str],
    /// What arguments of a pod replace.
    pub command: &'a [&'a str],
    /// Numbers, because an image may have no table of users.
    pub user: &'a str,
}

/// How layers are kept in the archive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Plain,
    /// Compressed: a third of the size to carry, for some seconds of work.
    Gzip,
}

/// A layer as the archive has it.
struct Packed {
    blob: Blob,
    /// SHA-256 of what it unpacks to.
    content: String,
    media_type: &'static str,
}

struct Blob {
    digest: String,
    size: u64,
    path: PathBuf,
}

/// Writes a layer of files: path in the image, where they are, mode. Folders above them come by themselves.
///
/// # Errors
/// The file system's.
pub fn layer(out: &Path, files: &[(&str, &Path, u32)]) -> Result<()> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", out.display());
    let mut writer = tar::Writer::new(BufWriter::new(File::create(out).map_err(failed)?));
    let mut made: Vec<&str> = Vec::new();
    for (name, path, mode) in files {
        for (at, _) in name.match_indices('/') {
            let folder = name.get(..at).unwrap_or_default();
            if !made.contains(&folder) {
                writer.folder(folder, 0o755).map_err(failed)?;
                made.push(folder);
            }
        }
        writer.file(name, *mode, path).map_err(|error| format!("cannot pack {}: {error}", path.display()))?;
    }
    writer.finish().map_err(failed)
}

/// Writes the archive and returns the digest of the image.
///
/// # Errors
/// The file system's.
pub fn write(out: &Path, image: &Image<'_>, layers: &[&Path], packing: Packing) -> Result<String> {
    let layers = layers.iter().map(|layer| packed(layer, packing)).collect::<Result<Vec<_>>>()?;
    let scratch = |what: &str| out.with_extension(format!("{what}.json"));
    let config = written(scratch("config"), &config(image, &layers))?;
    let manifest = written(scratch("manifest"), &manifest(&config, &layers))?;
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", out.display());
    let mut archive = tar::Writer::new(BufWriter::new(File::create(out).map_err(failed)?));
    let mut pack = || {
        archive.bytes("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.bytes("index.json", 0o644, index(image.name, &manifest).as_bytes())?;
        archive.bytes("manifest.json", 0o644, for_docker(image.name, &config, &layers).as_bytes())?;
        archive.folder("blobs", 0o755)?;
        archive.folder("blobs/sha256", 0o755)?;
        for blob in [&manifest, &config].into_iter().chain(layers.iter().map(|layer| &layer.blob)) {
            archive.file(&format!("blobs/sha256/{}", blob.digest), 0o644, &blob.path)?;
        }
        std::io::Result::Ok(())
    };
    pack().map_err(failed)?;
    archive.finish().map_err(failed)?;
    let compressed = layers.iter().filter(|_| packing == Packing::Gzip).map(|layer| &layer.blob);
    for blob in [&config, &manifest].into_iter().chain(compressed) {
        fs::remove_file(&blob.path).map_err(|error| format!("cannot remove {}: {error}", blob.path.display()))?;
    }
    Ok(format!("sha256:{}", manifest.digest))
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let sum = sh::output("sha256sum", &[path]);
    let digest = sum.as_deref().and_then(|sum| sum.split_whitespace().next().map(|word| word.trim_start_matches('\\')));
    digest.map(str::to_owned).ok_or_else(|| format!("sha256sum cannot read {}", path.display()))
}

fn blob(path: PathBuf) -> Result<Blob> {
    let size = fs::metadata(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    Ok(Blob { digest: sha256(&path)?, size, path })
}

fn packed(layer: &Path, packing: Packing) -> Result<Packed> {
    let plain = blob(layer.to_owned())?;
    if packing == Packing::Plain {
        return Ok(Packed { content: plain.digest.clone(), blob: plain, media_type: "layer.v1.tar" });
    }
    let out = layer.with_extension("layer.gz");
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", out.display());
    let file = File::create(&out).map_err(failed)?;
    // Neither a name nor a time: the same layer gives the same bytes.
    let mut gzip = Command::new("gzip");
    gzip.args(["--no-name", "--best", "--stdout"]).arg(layer).stdin(Stdio::null()).stdout(file);
    let status = gzip.status().map_err(|error| format!("gzip does not run: {error}"))?;
    if !status.success() {
        return Err(format!("gzip cannot compress {}: {status}", layer.display()));
    }
    Ok(Packed { blob: blob(out)?, content: plain.digest, media_type: "layer.v1.tar+gzip" })
}

fn written(path: PathBuf, text: &str) -> Result<Blob> {
    let write = || File::create(&path)?.write_all(text.as_bytes());
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    blob(path)
}

fn config(image: &Image<'_>, layers: &[Packed]) -> String {
    let list = |words: &[&str]| words.iter().map(|word| json(word)).collect::<Vec<_>>().join(",");
    let labels: Vec<String> =
        image.labels.iter().map(|(name, value)| format!("{}:{}", json(name), json(value))).collect();
    let mut container =
        vec![r#""Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]"#.to_owned()];
    if !image.entry.program.is_empty() {
        container.push(format!(r#""Entrypoint":[{}]"#, list(image.entry.program)));
    }
    if !image.entry.command.is_empty() {
        container.push(format!(r#""Cmd":[{}]"#, list(image.entry.command)));
    }
    if !image.entry.user.is_empty() {
        container.push(format!(r#""User":{}"#, json(image.entry.user)));
    }
    container.push(format!(r#""Labels":{{{}}}"#, labels.join(",")));
    format!(
        r#"{{"created":{},"architecture":"amd64","os":"linux","config":{{{}}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        json(image.created),
        container.join(","),
        layers.iter().map(|layer| format!("\"sha256:{}\"", layer.content)).collect::<Vec<_>>().join(",")
    )
}

fn manifest(config: &Blob, layers: &[Packed]) -> String {
    let part = |kind: &str, blob: &Blob| {
        let kind = format!("application/vnd.oci.image.{kind}");
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":{}}}"#, blob.digest, blob.size)
    };
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        part("config.v1+json", config),
        layers.iter().map(|layer| part(layer.media_type, &layer.blob)).collect::<Vec<_>>().join(",")
    )
}

fn for_docker(name: &str, config: &Blob, layers: &[Packed]) -> String {
    let path = |blob: &Blob| format!("\"blobs/sha256/{}\"", blob.digest);
    let layers: Vec<String> = layers.iter().map(|layer| path(&layer.blob)).collect();
    format!(r#"[{{"Config":{},"RepoTags":[{}],"Layers":[{}]}}]"#, path(config), json(name), layers.join(","))
}

/// Both names are read: the first by tools of the standard, the second by containerd for the whole name.
fn index(name: &str, manifest: &Blob) -> String {
    let tag = name.rsplit(':').next().unwrap_or("latest");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{},"platform":{{"architecture":"amd64","os":"linux"}},"annotations":{{"org.opencontainers.image.ref.name":{},"io.containerd.image.name":{}}}}}]}}"#,
        manifest.digest,
        manifest.size,
        json(tag),
        json(name)
    )
}

/// A text as JSON writes it.
pub fn json(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            letter if letter.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a failed step is a failed test")]

    use super::{Entry, Image, Packing, json, layer, sha256, write};
    use std::path::Path;

    #[test]
    fn text_is_escaped_for_json() {
        for (text, expected) in [("a", "\"a\""), ("a\"b\\c", r#""a\"b\\c""#), ("a\nb", r#""a\u000ab""#), ("ä", "\"ä\"")]
        {
            assert_eq!(json(text), expected);
        }
    }

    fn made(place: &Path, content: &[u8], packing: Packing) -> (String, Vec<u8>) {
        std::fs::create_dir_all(place).expect("folder");
        let (program, packed, archive) = (place.join("program"), place.join("layer"), place.join("image.tar"));
        std::fs::write(&program, content).expect("written");
        layer(&packed, &[("usr/local/bin/program", &program, 0o755), ("usr/local/bin/b", &program, 0o644)])
            .expect("layer");
        let labels = [("version".to_owned(), "1".to_owned())];
        let entry = Entry { program: &["/usr/local/bin/program"], ..Entry::default() };
        let image = Image { name: "a.test/b:1", created: "1970-01-01T00:00:00Z", labels: &labels, entry };
        let digest = write(&archive, &image, &[&packed], packing).expect("image");
        (digest, std::fs::read(&archive).expect("archive"))
    }

    #[test]
    fn archive_of_the_same_files_has_the_same_digest_wherever_it_is_made() {
        for packing in [Packing::Plain, Packing::Gzip] {
            let folder = std::env::temp_dir().join(format!("causeway-oci-{}", std::process::id()));
            let made = |place: &str, content: &[u8]| made(&folder.join(place), content, packing);
            let (one, two, other) = (made("one", b"x"), made("two", b"x"), made("three", b"y"));
            assert_eq!(one, two);
            assert_ne!(one.0, other.0);
            for left in ["one/image.config.json", "one/layer.gz", "one/layer.layer.gz"] {
                assert!(!folder.join(left).exists(), "{left}");
            }
            std::fs::remove_dir_all(&folder).expect("removed");
        }
    }

    #[test]
    fn compressed_layer_is_named_by_what_it_is_and_by_what_it_unpacks_to() {
        let place = std::env::temp_dir().join(format!("causeway-oci-gzip-{}", std::process::id()));
        let (_, archive) = made(&place, &[b'x'; 1 << 16], Packing::Gzip);
        assert!(archive.len() < 1 << 14, "{} bytes", archive.len());
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("application/vnd.oci.image.layer.v1.tar+gzip"));
        let content = sha256(&place.join("layer")).expect("digest");
        assert!(text.contains(&format!("\"diff_ids\":[\"sha256:{content}\"]")));
        assert!(!text.contains(&format!("blobs/sha256/{content}")), "that is not what the archive holds");
        assert!(text.contains(r#""RepoTags":["a.test/b:1"],"Layers":["blobs/sha256/"#), "docker load");
        std::fs::remove_dir_all(&place).expect("removed");
    }
}
