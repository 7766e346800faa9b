//! The clients that check something. Each prints one line a test can look for.

use super::pattern::Pattern;
use super::serve::{GREETING, HALF_CLOSE_BYTES, drain, receive_pattern, send_pattern};
use super::{CHUNK, connect};
use crate::{Result, context, sys};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Sends and receives `bytes` bytes at once against a duplex server; prints `both ways ok`.
///
/// # Errors
/// With the place of the first byte that differs, on either side.
pub async fn duplex(to: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = connect(to).await?;
    let seed = u64::from(std::process::id()) << 20 | 1;
    stream.write_u64_le(bytes).await.map_err(context("length"))?;
    stream.write_u64_le(seed).await.map_err(context("seed"))?;
    let start = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        send_pattern(&mut writer, Pattern::new(seed), bytes).await?;
        // The client ends its side first: Envoy 1.40 as the last hop answers a backend that closes before the client with
        // RST_STREAM, and throws away what it had not sent yet.
        writer.shutdown().await.map_err(context("shutdown"))
    };
    let (sent, received) = tokio::join!(sending, receive_pattern(&mut reader, Pattern::new(!seed), bytes));
    sent?;
    received?;
    let mut verdict = String::new();
    reader.read_to_string(&mut verdict).await.map_err(context("verdict"))?;
    if verdict.trim() != format!("ok {bytes}") {
        return Err(format!("the server says: {verdict}").into());
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("both ways ok: {bytes} bytes each in {seconds:.1} s");
    Ok(())
}

/// Sends a mebibyte to a sink, closes the sending side, and expects the count as the answer; prints `counted`.
///
/// # Errors
/// If the count differs or the answer does not come.
pub async fn half_close(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(&vec![b'c'; HALF_CLOSE_BYTES]).await.map_err(context("write"))?;
    stream.shutdown().await.map_err(context("shutdown"))?;
    let count = stream.read_u64_le().await.map_err(context("the answer after closing"))?;
    let (how, rest) = drain(&mut stream).await;
    if count != HALF_CLOSE_BYTES as u64 || how != "eof" || rest != 0 {
        return Err(format!("the sink counted {count}, then {how} after {rest} more bytes").into());
    }
    println!("counted {count}");
    Ok(())
}

/// Reads until a half-closing server has finished, then sends a mebibyte; prints `sent`.
///
/// # Errors
/// If the stream ends early.
pub async fn late_sender(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    let (how, total) = drain(&mut stream).await;
    if how != "eof" || total != HALF_CLOSE_BYTES as u64 {
        return Err(format!("{how} after {total} bytes").into());
    }
    stream.write_all(&vec![b'l'; HALF_CLOSE_BYTES]).await.map_err(context("write after their end"))?;
    stream.shutdown().await.map_err(context("shutdown"))?;
    println!("sent {HALF_CLOSE_BYTES}");
    Ok(())
}

/// Expects a greeting before saying anything, then an echo; prints `greeted`.
///
/// # Errors
/// If no greeting comes within five seconds.
pub async fn greeted(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    let mut line = vec![0; GREETING.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut line)).await;
    read.map_err(|_| "no greeting within 5 s")?.map_err(context("greeting"))?;
    if line != GREETING.as_bytes() {
        return Err(format!("greeting {:?}", String::from_utf8_lossy(&line)).into());
    }
    exchange(&mut stream, 1).await?;
    println!("greeted");
    Ok(())
}

/// Sends some bytes and ends the connection with RST.
///
/// # Errors
/// If the connection cannot be made.
pub async fn send_reset(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(b"about to vanish\n").await.map_err(context("write"))?;
    // The bytes must have arrived: an RST may overtake and discard what is still on its way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    sys::reset_on_close(stream.as_fd()).map_err(context("SO_LINGER"))?;
    println!("reset");
    Ok(())
}

/// Sends a byte and prints how the connection ended: `eof` or `reset`.
///
/// # Errors
/// If the connection cannot be made.
pub async fn how_it_ends(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(b"x").await.map_err(context("write"))?;
    let (how, _) = drain(&mut stream).await;
    println!("ended by {how}");
    Ok(())
}

/// Opens `count` connections to an echo server, keeps them idle until standard input closes, and checks all again.
/// Prints `open <count>`, then `alive <count>`.
///
/// # Errors
/// At the first connection that fails.
pub async fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let gate = Arc::new(Semaphore::new(32));
    let mut opening = Vec::new();
    for number in 0..count {
        let gate = gate.clone();
        opening.push(tokio::spawn(async move {
            let _turn = gate.acquire().await.map_err(context("gate"))?;
            let mut stream = connect(to).await?;
            exchange(&mut stream, number as u64).await.map_err(context(format!("connection {number}")))?;
            Ok::<_, crate::Error>(stream)
        }));
    }
    let mut streams = Vec::new();
    for task in opening {
        streams.push(task.await.map_err(context("task"))??);
    }
    println!("open {count}");
    let (closed, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
    for (number, stream) in streams.iter_mut().enumerate() {
        exchange(stream, number as u64).await.map_err(context(format!("connection {number} after idling")))?;
    }
    println!("alive {count}");
    Ok(())
}

/// Sends eight bytes to an echo server and expects them back.
async fn exchange(stream: &mut TcpStream, value: u64) -> Result<()> {
    stream.write_u64_le(value).await.map_err(context("write"))?;
    let back = tokio::time::timeout(Duration::from_secs(30), stream.read_u64_le()).await;
    let back = back.map_err(|_| "no echo within 30 s")?.map_err(context("echo"))?;
    if back == value { Ok(()) } else { Err(format!("sent {value}, got {back}").into()) }
}

/// Sends a text again and again until its input is closed, reconnecting whenever a connection fails; prints how often each
/// happened.
///
/// # Errors
/// Only if nothing could be sent at all.
pub async fn load(to: SocketAddr, text: &str) -> Result<()> {
    // Paced, so that a recording of it stays complete and of a size that can be searched.
    let block: Vec<u8> = text.bytes().cycle().take((32 << 10) / text.len().max(1) * text.len()).collect();
    let pause = Duration::from_millis(4);
    let told = Arc::new(AtomicBool::new(false));
    let ended = {
        let told = told.clone();
        move || told.load(Ordering::Relaxed)
    };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        told.store(true, Ordering::Relaxed);
    });
    let (mut connected, mut refused, mut broken, mut bytes) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut discard = vec![0; CHUNK];
    while !ended() {
        let Ok(stream) = connect(to).await else {
            refused += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        connected += 1;
        let (mut reader, mut writer) = stream.into_split();
        // What an echo sends back must be read, or both directions stand still.
        let sending = async {
            while !ended() && writer.write_all(&block).await.is_ok() {
                bytes += block.len() as u64;
                tokio::time::sleep(pause).await;
            }
        };
        let receiving = async { while reader.read(&mut discard).await.is_ok_and(|got| got > 0) {} };
        tokio::select! { () = sending => {}, () = receiving => {} }
        broken += u64::from(!ended());
    }
    println!("connected {connected} refused {refused} broken {broken} bytes {bytes}");
    if bytes == 0 { Err("nothing was sent".into()) } else { Ok(()) }
}
