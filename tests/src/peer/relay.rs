//! A plain relay behind netfilter's REDIRECT: what redirection costs without a tunnel, for comparison.

use super::{CHUNK, listen};
use crate::{Result, context, sys};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Relays every connection to where it was going before it was redirected, on one thread per processor. Connections of
/// the relay carry `mark`, which the rules let pass.
///
/// # Errors
/// If the port cannot be opened.
pub fn run(port: u16, mark: u32) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let handles: Vec<_> =
        (0..threads).map(|_| std::thread::spawn(move || super::block_on(serve(port, mark)))).collect();
    println!("relaying on {port}");
    for handle in handles {
        handle.join().map_err(|_| "a relay thread panicked")??;
    }
    Ok(())
}

async fn serve(port: u16, mark: u32) -> Result<()> {
    let listener = listen(port, true)?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async move {
            if let Err(error) = one(stream, mark).await {
                eprintln!("{error}");
            }
        });
    }
}

async fn one(down: tokio::net::TcpStream, mark: u32) -> Result<()> {
    let to = sys::original_destination(down.as_fd()).map_err(context("SO_ORIGINAL_DST"))?;
    let socket = TcpSocket::new_v4().map_err(context("socket"))?;
    let value = i32::try_from(mark).map_err(context("mark"))?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, value).map_err(context("SO_MARK"))?;
    let up = socket.connect(SocketAddr::V4(to)).await.map_err(context(format!("relay to {to}")))?;
    for stream in [&down, &up] {
        stream.set_nodelay(true).map_err(context("TCP_NODELAY"))?;
    }
    let (down_reader, down_writer) = down.into_split();
    let (up_reader, up_writer) = up.into_split();
    let (forth, back) = tokio::join!(copy(down_reader, up_writer), copy(up_reader, down_writer));
    forth.and(back)
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Result<()> {
    let mut buffer = vec![0; 1024];
    loop {
        let got = from.read(&mut buffer).await.map_err(context("relay: read"))?;
        let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        to.write_all(bytes).await.map_err(context("relay: write"))?;
        if got == buffer.len() && got < CHUNK {
            buffer.resize(CHUNK, 0);
        }
    }
    to.shutdown().await.map_err(context("relay: shutdown"))
}
