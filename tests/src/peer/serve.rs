//! The servers.

use super::pattern::Pattern;
use super::{CHUNK, listen};
use crate::{Result, context, sys};
use clap::ValueEnum;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What a server does with each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Sends everything back
    Echo,
    /// Reads to the end, then answers with the number of bytes (8 bytes, little endian)
    Sink,
    /// Sends and checks a pattern in both directions at once
    Duplex,
    /// Speaks first: a line of greeting, then an echo
    Banner,
    /// Sends a mebibyte, closes its sending side, then prints how much it still received
    Half,
    /// Prints how each connection ended: `eof <bytes>` or `reset <bytes>`
    Watch,
    /// Answers the first byte with RST
    Reset,
    /// Takes HTTP requests with a body, prints each body as a line, and answers with an empty object
    Collector,
}

/// The first line of [`Kind::Banner`].
pub const GREETING: &str = "220 ready before you asked\n";

/// How much each side of the half-close exchange sends.
pub const HALF_CLOSE_BYTES: usize = 1 << 20;

/// Serves for ever.
///
/// # Errors
/// If the port cannot be opened.
pub async fn run(kind: Kind, port: u16) -> Result<()> {
    let listener = listen(port, false)?;
    println!("listening on {port}");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = one(kind, stream).await {
                        eprintln!("{error}");
                    }
                });
            }
            // Out of descriptors, or the peer is gone already: the next one may work.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn one(kind: Kind, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true).map_err(context("TCP_NODELAY"))?;
    match kind {
        Kind::Echo => echo(stream).await,
        Kind::Sink => sink(stream).await,
        Kind::Duplex => duplex(stream).await,
        Kind::Banner => banner(stream).await,
        Kind::Half => half(stream).await,
        Kind::Watch => watch(stream).await,
        Kind::Reset => reset(stream).await,
        Kind::Collector => collector(stream).await,
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    // Small at first: thousands of idle connections are part of the tests.
    let mut buffer = vec![0; 256];
    loop {
        let got = stream.read(&mut buffer).await.map_err(context("echo: read"))?;
        let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        stream.write_all(bytes).await.map_err(context("echo: write"))?;
        if got == buffer.len() && got < CHUNK {
            buffer.resize(CHUNK, 0);
        }
    }
    stream.shutdown().await.map_err(context("echo: shutdown"))
}

async fn sink(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0_u64;
    loop {
        let got = stream.read(&mut buffer).await.map_err(context("sink: read"))?;
        if got == 0 {
            break;
        }
        total += got as u64;
    }
    stream.write_all(&total.to_le_bytes()).await.map_err(context("sink: answer"))?;
    stream.shutdown().await.map_err(context("sink: shutdown"))
}

async fn duplex(mut stream: TcpStream) -> Result<()> {
    let bytes = stream.read_u64_le().await.map_err(context("duplex: length"))?;
    let seed = stream.read_u64_le().await.map_err(context("duplex: seed"))?;
    let (mut reader, mut writer) = stream.into_split();
    let (sent, received) = tokio::join!(
        send_pattern(&mut writer, Pattern::new(!seed), bytes),
        receive_pattern(&mut reader, Pattern::new(seed), bytes)
    );
    sent?;
    // The verdict of this side, behind the last byte of the pattern.
    let verdict = match received {
        Ok(()) => format!("ok {bytes}\n"),
        Err(error) => format!("bad {error}\n"),
    };
    writer.write_all(verdict.as_bytes()).await.map_err(context("duplex: verdict"))?;
    writer.shutdown().await.map_err(context("duplex: shutdown"))
}

/// Sends `bytes` bytes of a pattern.
pub(super) async fn send_pattern(writer: &mut OwnedWriteHalf, mut pattern: Pattern, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while pattern.position() < bytes {
        let left = usize::try_from(bytes - pattern.position()).unwrap_or(CHUNK);
        buffer.truncate(left.min(CHUNK));
        pattern.fill(&mut buffer);
        writer.write_all(&buffer).await.map_err(context("sending the pattern"))?;
    }
    Ok(())
}

/// Receives `bytes` bytes and compares each.
pub(super) async fn receive_pattern(reader: &mut OwnedReadHalf, mut pattern: Pattern, bytes: u64) -> Result<()> {
    let (mut buffer, mut scratch) = (vec![0; CHUNK], Vec::new());
    let mut verdict = Ok(());
    let mut total = 0;
    while total < bytes {
        let left = usize::try_from(bytes - total).unwrap_or(CHUNK).min(CHUNK);
        let window = buffer.get_mut(..left).unwrap_or_default();
        let got = reader.read(window).await.map_err(context("receiving the pattern"))?;
        if got == 0 {
            return Err(format!("the stream ended after {total} of {bytes} bytes").into());
        }
        total += got as u64;
        // After the first difference the rest is still read, so that the other side can finish.
        if verdict.is_ok() {
            verdict = pattern.check(buffer.get(..got).unwrap_or_default(), &mut scratch);
        }
    }
    verdict
}

async fn banner(mut stream: TcpStream) -> Result<()> {
    stream.write_all(GREETING.as_bytes()).await.map_err(context("banner"))?;
    echo(stream).await
}

async fn half(mut stream: TcpStream) -> Result<()> {
    let block = vec![b'h'; HALF_CLOSE_BYTES];
    stream.write_all(&block).await.map_err(context("half: write"))?;
    stream.shutdown().await.map_err(context("half: shutdown"))?;
    let (how, total) = drain(&mut stream).await;
    println!("{how} {total} after closing");
    Ok(())
}

async fn watch(mut stream: TcpStream) -> Result<()> {
    let (how, total) = drain(&mut stream).await;
    println!("{how} {total}");
    Ok(())
}

/// Reads to the end and says how it came.
pub(super) async fn drain(stream: &mut TcpStream) -> (&'static str, u64) {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return ("eof", total),
            Ok(got) => total += got as u64,
            Err(_) => return ("reset", total),
        }
    }
}

async fn reset(mut stream: TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await.map_err(context("reset: read"))?;
    sys::reset_on_close(stream.as_fd()).map_err(context("SO_LINGER"))
}

/// Any path is taken; it is printed before the body.
async fn collector(mut stream: TcpStream) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.map_err(context("collector: head"))? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        while buffer.len() < end + length {
            if stream.read_buf(&mut buffer).await.map_err(context("collector: body"))? == 0 {
                return Err("collector: the body is cut".into());
            }
        }
        let path = head.split_whitespace().nth(1).unwrap_or_default();
        println!("{path} {}", String::from_utf8_lossy(buffer.get(end..end + length).unwrap_or_default()));
        buffer.drain(..end + length);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(answer).await.map_err(context("collector: answer"))?;
    }
}
