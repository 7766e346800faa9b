//! Tape archives of the plainest kind, so that the same files always give the same bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

const BLOCK: usize = 512;

/// An archive that is being written: everything in it belongs to root and is from the beginning of time.
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// If the name is too long, or nothing can be written.
    pub fn folder(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.out.write_all(&header(&format!("{name}/"), mode, 0, b'5')?)
    }

    /// Adds bytes as a file.
    ///
    /// # Errors
    /// As [`Writer::folder`].
    pub fn bytes(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.content(name, mode, content.len() as u64, content)
    }

    /// Adds a file.
    ///
    /// # Errors
    /// As [`Writer::folder`], or if the file cannot be read or changes while it is.
    pub fn file(&mut self, name: &str, mode: u32, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        self.content(name, mode, size, file)
    }

    fn content(&mut self, name: &str, mode: u32, size: u64, content: impl Read) -> io::Result<()> {
        self.out.write_all(&header(name, mode, size, b'0')?)?;
        if io::copy(&mut content.take(size), &mut self.out)? != size {
            return Err(io::Error::other(format!("{name} became shorter while it was read")));
        }
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let padding = [0; BLOCK];
        self.out.write_all(padding.get(..(BLOCK - over) % BLOCK).unwrap_or_default())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

/// The header block as POSIX.1-1988 lays it out.
fn header(name: &str, mode: u32, size: u64, kind: u8) -> io::Result<[u8; BLOCK]> {
    if name.len() > 100 || size > 0o77_777_777_777 {
        return Err(io::Error::other(format!("{name} does not fit the format")));
    }
    let mut block = [0_u8; BLOCK];
    let (mode, size) = (format!("{mode:07o}"), format!("{size:011o}"));
    let fields: [(usize, &[u8]); 10] = [
        (0, name.as_bytes()),
        (100, mode.as_bytes()),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, size.as_bytes()),
        (136, b"00000000000"),
        // The sum is made with blanks in its own place.
        (148, b"        "),
        (156, &[kind]),
        (257, b"ustar\0"),
        (263, b"00"),
    ];
    for (at, bytes) in fields {
        put(&mut block, at, bytes);
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    for (place, byte) in block.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a failed step is a failed test")]

    use super::Writer;

    #[test]
    fn archive_is_what_the_tar_program_reads() {
        let folder = std::env::temp_dir().join(format!("causeway-tar-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let path = folder.join("a.tar");
        let mut writer = Writer::new(std::fs::File::create(&path).expect("file"));
        writer.folder("etc", 0o755).expect("written");
        writer.bytes("etc/greeting", 0o644, b"hello").expect("written");
        writer.bytes("etc/exact", 0o600, &[b'x'; 512]).expect("written");
        writer.finish().expect("written");
        let list = std::process::Command::new("tar").arg("-tvf").arg(&path).output().expect("tar");
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let seen: Vec<_> =
            rows.iter().map(|row| (row.first().copied(), row.get(2).copied(), row.last().copied())).collect();
        assert_eq!(
            seen,
            [
                (Some("drwxr-xr-x"), Some("0"), Some("etc/")),
                (Some("-rw-r--r--"), Some("5"), Some("etc/greeting")),
                (Some("-rw-------"), Some("512"), Some("etc/exact")),
            ]
        );
        let read = std::process::Command::new("tar").arg("-xOf").arg(&path).arg("etc/greeting").output().expect("tar");
        assert_eq!(read.stdout, b"hello");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
