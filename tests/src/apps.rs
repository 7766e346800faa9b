//! Ordinary servers in pods: nginx, redis and PostgreSQL with as much configuration as they need to run from a folder.

use crate::{Error, Finished, Pod, Proc, Result, context, process};
use std::path::{Path, PathBuf};
use std::time::Duration;

const START: Duration = Duration::from_secs(30);

/// nginx on `port`, both families; `/` answers `pod=<name> client=<address>`, `/files/` serves the scratch folder.
///
/// # Errors
/// If it does not start.
pub fn nginx(pod: &Pod, port: u16) -> Result<Proc> {
    let folder = folder(pod, "nginx")?;
    let at = folder.display();
    let name = &pod.data().name;
    let files = pod.scratch.display();
    let configuration = format!(
        "daemon off; user root; worker_processes 1; worker_rlimit_nofile 65536; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; client_max_body_size 0;\n\
         server {{ listen [::]:{port} ipv6only=off backlog=4096; default_type text/plain;\n\
         location / {{ return 200 \"pod={name} client=$remote_addr\\n\"; }}\n\
         location /files/ {{ alias {files}/; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).map_err(context(file.display()))?;
    let file = file.to_string_lossy();
    let error_log = folder.join("error.log");
    let server = pod.spawn(&["nginx", "-p", &at.to_string(), "-e", &error_log.to_string_lossy(), "-c", &file])?;
    wait_for_port(pod, port, server)
}

/// redis on `port`, both families, without persistence.
///
/// # Errors
/// If it does not start.
pub fn redis(pod: &Pod, port: u16) -> Result<Proc> {
    let folder = folder(pod, "redis")?;
    let port_text = port.to_string();
    let folder = folder.to_string_lossy();
    let server = pod.spawn(&[
        "redis-server",
        "--port",
        &port_text,
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        &folder,
    ])?;
    wait_for_port(pod, port, server)
}

/// PostgreSQL on `port`, both families, with an empty database and no password.
///
/// # Errors
/// If it is not installed or does not start.
pub fn postgres(pod: &Pod, port: u16) -> Result<Proc> {
    let programs = postgres_programs()?;
    let folder = folder(pod, "postgres")?;
    // The server refuses to run as root.
    let owner = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"];
    pod.run_ok(&["chown", "postgres:postgres", &folder.to_string_lossy()])?;
    let data = folder.join("data").to_string_lossy().into_owned();
    let initdb = programs.join("initdb").to_string_lossy().into_owned();
    let prepare = [&initdb, "--pgdata", &data, "--auth", "trust", "--no-sync", "--username", "postgres"];
    pod.run_ok(&[owner.as_slice(), prepare.map(|word| word).as_slice()].concat())?;
    let rules = folder.join("data").join("pg_hba.conf");
    std::fs::write(&rules, "local all all trust\nhost all all all trust\n").map_err(context(rules.display()))?;
    let server = programs.join("postgres").to_string_lossy().into_owned();
    let (port_text, sockets) = (port.to_string(), folder.to_string_lossy().into_owned());
    let line =
        [server.as_str(), "-D", &data, "-p", &port_text, "-k", &sockets, "-c", "listen_addresses=*", "-c", "fsync=off"];
    let server = pod.spawn(&[owner.as_slice(), line.as_slice()].concat())?;
    wait_for_port(pod, port, server)
}

fn postgres_programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .map(|entry| entry.path().join("bin"))
        .find(|folder| folder.join("initdb").is_file())
        .ok_or_else(|| Error::from("PostgreSQL is not installed: cargo xtask setup"))
}

fn folder(pod: &Pod, application: &str) -> Result<PathBuf> {
    let path = pod.scratch.join(format!("{application}-{}", pod.netns));
    std::fs::create_dir_all(&path).map_err(context(path.display()))?;
    Ok(path)
}

/// Waits until something in the pod listens on the port, or the server ends.
///
/// # Errors
/// With what the server printed.
pub fn wait_for_port(pod: &Pod, port: u16, mut server: Proc) -> Result<Proc> {
    let listening = process::until(START, || listens(pod, port) || !server.is_running());
    if listening.is_ok() && server.is_running() {
        return Ok(server);
    }
    Err(format!("no listener on port {port} in {}: {}{}", pod.netns, server.stdout(), server.stderr()).into())
}

fn listens(pod: &Pod, port: u16) -> bool {
    crate::netns::within(&pod.netns, move || {
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|path| table_has(Path::new(path), port))
    })
    .unwrap_or(false)
}

/// Whether a kernel socket table has a listener (state 0A) on the port.
fn table_has(path: &Path, port: u16) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        let state = fields.nth(1).unwrap_or_default();
        state == "0A" && local.rsplit(':').next() == Some(&format!("{port:04X}"))
    })
}

/// Whether curl met a reset: while it connected, when it wrote, or when it read.
pub fn was_reset(curl: &Finished) -> bool {
    matches!(curl.status.code(), Some(7 | 55 | 56))
}

/// Whether an echo server answers a program of the pod.
pub fn echoes(pod: &Pod, host: &str, port: u16) -> bool {
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && printf hello >&3 && timeout 3 head -c 5 <&3");
    pod.run(&["bash", "-c", &script]).is_ok_and(|done| done.stdout == "hello")
}
