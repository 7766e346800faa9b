//! The admin socket: one JSON request per line, one JSON answer per line, on a Unix socket only root can open.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};
use tracing::warn;

/// Between two attempts to take a connection, after one that failed.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest request accepted, in bytes.
const REQUEST_BYTES: u64 = 4096;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// Readiness, pods and counters.
    Status,
    /// Certificates held and when they expire.
    Certificates,
    /// Workloads, services, policies, certificates, pods.
    ConfigDump,
    /// Connections open now.
    Connections,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    get: Topic,
}

/// Answers for a topic.
pub type Answer = Arc<dyn Fn(Topic) -> Value + Send + Sync>;

/// The socket's file; it is removed when this goes.
pub struct AdminSocket {
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the socket at `path`, replacing one that a dead process left, and answers until the runtime ends.
///
/// # Errors
/// The folder does not exist or another live process answers on the path.
pub async fn serve(path: &Path, answer: Answer) -> io::Result<AdminSocket> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("a daemon of the same instance already answers on {}", path.display()),
        ));
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, answer.clone()))),
                // No descriptor is left, say: whoever waits is answered once there is one.
                Err(error) => {
                    warn!("the admin socket: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(AdminSocket { path: path.to_owned() })
}

async fn converse(stream: UnixStream, answer: Answer) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = String::new();
        let count = (&mut lines).take(REQUEST_BYTES).read_line(&mut line).await?;
        if count == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str::<Request>(&line) {
            Ok(request) => answer(request.get),
            Err(error) => {
                json!({"error": format!("{error}; ask for example {{\"get\":\"status\"}}")})
            }
        };
        write.write_all(format!("{reply}\n").as_bytes()).await?;
    }
}

/// How long a daemon may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a daemon for a topic, from a process without a runtime.
///
/// # Errors
/// Nobody answers on `path`, or the answer is no JSON.
pub fn ask(path: &Path, topic: Topic) -> io::Result<Value> {
    use std::io::{BufRead, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{}", json!({ "get": topic }))?;
    let mut line = String::new();
    io::BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}
