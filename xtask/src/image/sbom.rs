//! What the program is made of, as an SPDX 2.3 document: every crate that cargo resolves for it and for the kernel programs,
//! with its licence, its origin and the checksum in the lock file.

use super::TARGET;
use super::oci::json;
use crate::{Result, paths, sh};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One crate.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Package {
    name: String,
    version: String,
    license: String,
    repository: String,
}

/// The document for a program with this digest.
///
/// # Errors
/// If cargo cannot say what the program is made of.
pub fn document(program: &str, created: &str) -> Result<String> {
    let mut packages = BTreeSet::new();
    for (package, features) in [("causeway", ""), ("causeway-ebpf", "programs")] {
        packages.extend(resolved(package, features)?);
    }
    let lock = paths::root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).map_err(|error| format!("cannot read {}: {error}", lock.display()))?;
    Ok(write(&packages, &checksums(&lock), program, created))
}

fn resolved(package: &str, features: &str) -> Result<Vec<Package>> {
    let manifest = paths::root().join("Cargo.toml").display().to_string();
    let cargo = sh::cargo_program();
    let line = ["tree", "--locked", "--manifest-path", &manifest, "--package", package, "--features", features];
    let form = ["--edges", "normal", "--target", TARGET, "--prefix", "none", "--format", "{p}|{l}|{r}"];
    let text = sh::output(&cargo.to_string_lossy(), &[&line[..], &form[..]].concat());
    let text = text.ok_or_else(|| format!("cargo tree cannot say what {package} is made of"))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// A line of cargo tree: `name v1.2.3 (where)|licence|repository`, perhaps with a mark that it was seen before.
fn parse(line: &str) -> Option<Package> {
    let mut fields = line.trim_end_matches(" (*)").split('|');
    let mut words = fields.next()?.split(' ');
    let (name, version) = (words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned());
    // Old crates write a slash for a choice, which SPDX calls OR.
    let license = fields.next().unwrap_or_default().replace('/', " OR ").replace("  OR  ", " OR ");
    Some(Package { name, version, license, repository: fields.next().unwrap_or_default().to_owned() })
}

/// The checksums of a lock file, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for part in lock.split("[[package]]") {
        let field = |name: &str| {
            let line = part.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) = (field("name"), field("version"), field("checksum")) {
            found.insert((name, version), sum);
        }
    }
    found
}

fn write(
    packages: &BTreeSet<Package>,
    checksums: &BTreeMap<(String, String), String>,
    program: &str,
    created: &str,
) -> String {
    let id = |package: &Package| {
        let text = format!("{}-{}", package.name, package.version);
        let safe = |letter: char| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
        format!("SPDXRef-{}", text.chars().map(safe).collect::<String>())
    };
    let mut parts = Vec::new();
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-program")];
    parts.push(format!(
        r#"{{"SPDXID":"SPDXRef-program","name":"causeway","versionInfo":"{}","downloadLocation":"NOASSERTION","filesAnalyzed":false,"licenseConcluded":"NOASSERTION","licenseDeclared":"Apache-2.0","copyrightText":"NOASSERTION","checksums":[{{"algorithm":"SHA256","checksumValue":"{program}"}}],"primaryPackagePurpose":"APPLICATION"}}"#,
        env!("CARGO_PKG_VERSION")
    ));
    for package in packages {
        let declared = if package.license.is_empty() { "NOASSERTION" } else { &package.license };
        let home = if package.repository.is_empty() { "NOASSERTION" } else { &package.repository };
        // Crates of this workspace come from no registry.
        let sum = checksums.get(&(package.name.clone(), package.version.clone()));
        let sum = sum.map(|sum| format!(r#""checksums":[{{"algorithm":"SHA256","checksumValue":"{sum}"}}],"#));
        let reference = format!(
            r#"{{"referenceCategory":"PACKAGE-MANAGER","referenceType":"purl","referenceLocator":"pkg:cargo/{}@{}"}}"#,
            package.name, package.version
        );
        parts.push(format!(
            r#"{{"SPDXID":"{}","name":{},"versionInfo":{},"downloadLocation":{},"filesAnalyzed":false,"licenseConcluded":"NOASSERTION","licenseDeclared":{},"copyrightText":"NOASSERTION",{}"externalRefs":[{reference}]}}"#,
            id(package),
            json(&package.name),
            json(&package.version),
            json(home),
            json(declared),
            sum.unwrap_or_default()
        ));
        relations.push(relation("SPDXRef-program", "CONTAINS", &id(package)));
    }
    format!(
        "{{\"spdxVersion\":\"SPDX-2.3\",\"dataLicense\":\"CC0-1.0\",\"SPDXID\":\"SPDXRef-DOCUMENT\",\"name\":\"causeway\",\"documentNamespace\":\"https://causeway.example/spdx/{program}\",\"creationInfo\":{{\"created\":\"{created}\",\"creators\":[\"Tool: cargo-xtask\"]}},\"packages\":[\n{}\n],\"relationships\":[\n{}\n]}}\n",
        parts.join(",\n"),
        relations.join(",\n")
    )
}

fn relation(from: &str, kind: &str, to: &str) -> String {
    format!(r#"{{"spdxElementId":"{from}","relationshipType":"{kind}","relatedSpdxElement":"{to}"}}"#)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a failed step is a failed test")]

    use super::{checksums, document, parse};

    #[test]
    fn lines_of_cargo_tree_are_read() {
        for (line, expected) in [
            ("h2 v0.4.20|MIT|https://a.example/h2", Some(("h2", "0.4.20", "MIT"))),
            ("asn1 v0.6.0 (proc-macro)|MIT/Apache-2.0| (*)", Some(("asn1", "0.6.0", "MIT OR Apache-2.0"))),
            ("causeway v0.1.0 (/a b/c)|Apache-2.0|", Some(("causeway", "0.1.0", "Apache-2.0"))),
            ("", None),
        ] {
            let found = parse(line);
            let found = found.as_ref().map(|p| (p.name.as_str(), p.version.as_str(), p.license.as_str()));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn checksums_are_those_of_the_lock_file() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n";
        let found: Vec<_> = checksums(lock).into_iter().collect();
        assert_eq!(found, [(("a".to_owned(), "1.0.0".to_owned()), "abc".to_owned())]);
    }

    #[test]
    fn document_names_what_the_daemon_is_made_of_and_no_folder_of_this_machine() {
        let text = document("00", "1970-01-01T00:00:00Z").expect("cargo tree");
        for part in ["\"name\":\"rustls\"", "\"name\":\"aya-ebpf\"", "pkg:cargo/h2@", "SPDX-2.3"] {
            assert!(text.contains(part), "{part} is missing");
        }
        assert!(!text.contains(&crate::paths::root().display().to_string()));
        assert_eq!(text, document("00", "1970-01-01T00:00:00Z").expect("cargo tree"));
    }
}
