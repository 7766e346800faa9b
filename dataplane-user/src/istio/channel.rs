//! gRPC over TLS to a server of the control plane, for resources and certificates alike.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};
use tonic::{Request, Status};

use super::kept::KeptFile;

/// How long a TCP connection and its TLS handshake may take, each.
const CONNECT: Duration = Duration::from_secs(5);
/// Istio's servers end connections whose client pings more often than every 15 s.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A ping without an answer for this long ends the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A first answer may be megabytes; h2's default window would take a round trip per 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// How a server of the control plane is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelConfig {
    /// `https://host:port`; `http://` only towards this machine.
    pub address: String,
    /// The name its certificate must carry, if not the host of the address.
    pub server_name: Option<String>,
    /// PEM file with the roots its certificate must lead to.
    pub roots: Option<PathBuf>,
    /// File with the bearer token.
    pub token: Option<PathBuf>,
    /// Further metadata of every call.
    pub headers: Vec<(String, String)>,
}

/// Why there is no connection to the control plane.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelError {
    /// The configuration cannot work; trying again does not help.
    #[error("control plane {address:?}: {reason}")]
    Config {
        /// The address as configured.
        address: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A file that is needed cannot be read.
    #[error("{0}")]
    File(String),
    /// The server cannot be reached, or is not who it should be.
    #[error("cannot connect to the control plane at {address}: {reason}")]
    Connect {
        /// The address as configured.
        address: String,
        /// All causes, outermost first.
        reason: String,
    },
}

/// Makes connections to one server; every one reads the root bundle anew.
#[derive(Debug, Clone)]
pub struct Connector {
    endpoint: Endpoint,
    address: String,
    server_name: Option<String>,
    roots: Option<Arc<KeptFile>>,
    credentials: Credentials,
}

/// A connection. It reconnects by itself with the roots it was made with, so whoever sees calls fail makes a new one.
pub type Connection = Grpc<InterceptedService<Channel, Credentials>>;

/// Adds the token, read anew for every call, and the configured headers.
#[derive(Debug, Clone)]
pub struct Credentials {
    token: Option<Arc<KeptFile>>,
    headers: Arc<[(MetadataKey<Ascii>, MetadataValue<Ascii>)]>,
}

impl Connector {
    /// Checks the configuration; touches neither network nor files.
    ///
    /// # Errors
    /// [`ChannelError::Config`] with the part that cannot be right.
    pub fn new(config: &ChannelConfig) -> Result<Self, ChannelError> {
        let wrong = |reason: String| ChannelError::Config { address: config.address.clone(), reason };
        let uri: Uri = config.address.parse().map_err(|error| wrong(format!("not a URI: {error}")))?;
        let (Some(host), Some(_)) = (uri.host(), uri.port_u16()) else {
            return Err(wrong("host and port are needed, as in https://istiod.istio-system.svc:15012".into()));
        };
        match uri.scheme_str() {
            Some("https") if config.roots.is_none() => {
                return Err(wrong("a root bundle is needed to know the server".into()));
            }
            Some("https") => {}
            Some("http") if matches!(host, "127.0.0.1" | "[::1]" | "localhost") => {}
            _ => return Err(wrong("must begin with https://; a token does not travel unencrypted".into())),
        }
        let mut headers = Vec::with_capacity(config.headers.len());
        for (name, value) in &config.headers {
            let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|error| wrong(format!("header {name:?}: {error}")))?;
            let value = MetadataValue::try_from(value).map_err(|error| wrong(format!("header {name:?}: {error}")))?;
            headers.push((key, value));
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PING_INTERVAL))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(STREAM_WINDOW_BYTES);
        Ok(Self {
            endpoint,
            address: config.address.clone(),
            server_name: config.server_name.clone(),
            roots: config.roots.as_ref().map(|path| Arc::new(KeptFile::new("root bundle", path))),
            credentials: Credentials {
                token: config.token.as_ref().map(|path| Arc::new(KeptFile::new("token", path))),
                headers: headers.into(),
            },
        })
    }

    /// The address as configured.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The roots that the next connection will be checked against: the file's text now.
    ///
    /// # Errors
    /// If the file has never been readable.
    pub fn roots(&self) -> Result<Option<String>, ChannelError> {
        self.roots.as_ref().map(|file| file.read()).transpose().map_err(ChannelError::File)
    }

    /// The token as the next call will send it, if there is one.
    #[must_use]
    pub fn token(&self) -> Option<String> {
        self.credentials.token.as_ref()?.read().ok()
    }

    /// Connects, with the roots as they are on disk now.
    ///
    /// # Errors
    /// Why not; [`ChannelError::Connect`] is worth another try.
    pub async fn connect(&self) -> Result<Connection, ChannelError> {
        let mut endpoint = self.endpoint.clone();
        if self.endpoint.uri().scheme_str() == Some("https")
            && let Some(roots) = self.roots()?
        {
            endpoint = endpoint.tls_config(self.tls(&roots)?).map_err(|error| self.failed(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| self.failed(&error))?;
        let service = InterceptedService::new(channel, self.credentials.clone());
        // The list of a large mesh is larger than gRPC's default limit of 4 MiB.
        Ok(Grpc::new(service).max_decoding_message_size(usize::MAX))
    }

    fn tls(&self, roots: &str) -> Result<ClientTlsConfig, ChannelError> {
        let path = || self.roots.as_ref().map(|file| file.path().display().to_string()).unwrap_or_default();
        let count = CertificateDer::pem_slice_iter(roots.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| ChannelError::File(format!("root bundle {}: not PEM: {error}", path())))?
            .len();
        if count == 0 {
            return Err(ChannelError::File(format!("root bundle {}: holds no certificate", path())));
        }
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)).timeout(CONNECT);
        Ok(match &self.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        })
    }

    fn failed(&self, error: &(dyn Error + 'static)) -> ChannelError {
        ChannelError::Connect { address: self.address.clone(), reason: causes(error) }
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            let text = token.read().map_err(Status::failed_precondition)?;
            let mut value = MetadataValue::try_from(format!("Bearer {}", text.trim())).map_err(|_| {
                Status::failed_precondition(format!("token {}: not a line of text", token.path().display()))
            })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        for (name, value) in self.headers.iter() {
            request.metadata_mut().append(name.clone(), value.clone());
        }
        Ok(request)
    }
}

/// An error with all its causes; the outer ones of a transport say little.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // Many wrappers print what they wrap.
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

/// A status as a sentence: code, message, and the transport's causes if the server never answered.
#[must_use]
pub fn describe(status: &Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    match status.source().map(causes) {
        Some(more) if !text.contains(&more) => format!("{text}: {more}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    fn config(address: &str) -> ChannelConfig {
        ChannelConfig { address: address.into(), roots: Some("/nowhere".into()), ..ChannelConfig::default() }
    }

    #[test]
    fn addresses_that_cannot_work_are_refused_with_the_reason() {
        let rows = [
            ("https://istiod:15012", None),
            ("http://127.0.0.1:15010", None),
            ("http://istiod:15010", Some("https://")),
            ("istiod:15012", Some("")),
            ("https://istiod", Some("port")),
            ("https://", Some("")),
        ];
        for (address, reason) in rows {
            match (Connector::new(&config(address)), reason) {
                (Ok(_), None) => {}
                (Err(error), Some(reason)) => assert!(error.to_string().contains(reason), "{address}: {error}"),
                (other, _) => panic!("{address}: {other:?}"),
            }
        }
        let rootless = ChannelConfig { roots: None, ..config("https://istiod:15012") };
        assert!(Connector::new(&rootless).unwrap_err().to_string().contains("root bundle"));
        let headers = vec![("bad name".into(), "x".into())];
        let error = Connector::new(&ChannelConfig { headers, ..config("https://istiod:15012") }).unwrap_err();
        assert!(error.to_string().contains("bad name"), "{error}");
    }
}
