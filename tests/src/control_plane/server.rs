//! The server as a test sees it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use causeway::istio::wds::ADDRESS_TYPE;
use causeway::istio::xds_proto::{DeltaDiscoveryRequest, Resource};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::authority::Authority;
use super::service::{Ads, Fault, Shared};
use crate::{Result, context, netns};

/// A request that was received, with the token of its stream.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Metadata `authorization`.
    pub token: Option<String>,
    /// The request.
    pub request: DeltaDiscoveryRequest,
}

/// A running control plane; dropping it stops it.
#[derive(Debug)]
pub struct Scripted {
    shared: Shared,
    address: SocketAddr,
    namespace: Option<String>,
    folder: PathBuf,
    pems: (String, String),
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Scripted {
    /// Starts on loopback of this process's namespace, or of the named one. Writes `root-cert.pem` and `token` into `folder`.
    ///
    /// # Errors
    /// If it cannot listen or write.
    pub fn start(folder: &Path, namespace: Option<&str>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(context(folder.display()))?;
        let (root, chain, key) = certificates()?;
        fs::write(folder.join("root-cert.pem"), root).map_err(context("root-cert.pem"))?;
        fs::write(folder.join("token"), "token-1").map_err(context("token"))?;
        let mut server = Self {
            shared: Shared::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            namespace: namespace.map(str::to_owned),
            folder: folder.to_owned(),
            pems: (chain, key),
            running: None,
        };
        server.resume()?;
        Ok(server)
    }

    /// Listens again after [`Scripted::stop`], on the same port, with the resources it has by now.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn resume(&mut self) -> Result<()> {
        let address = self.address;
        let bind = move || TcpListener::bind(address);
        let listener = match &self.namespace {
            Some(namespace) => netns::within(namespace, bind)?,
            None => bind(),
        };
        let listener = listener.map_err(context(address))?;
        self.address = listener.local_addr().map_err(context("address"))?;
        listener.set_nonblocking(true).map_err(context("nonblocking"))?;
        let (shared, pems) = (self.shared.clone(), self.pems.clone());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(context("runtime"))?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let serve = async {
                    let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?);
                    let tls = ServerTlsConfig::new().identity(Identity::from_pem(pems.0, pems.1));
                    let server = Server::builder().tls_config(tls)?.serve_with_incoming(Ads(shared), incoming);
                    server.await.map_err(Box::<dyn std::error::Error>::from)
                };
                tokio::select! {
                    _ = stopped => {}
                    done = serve => if let Err(error) = done {
                        eprintln!("the scripted control plane ended: {error}");
                    },
                }
            });
        });
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Stops listening and cuts all connections; the resources stay.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The file with its root certificate.
    pub fn root_cert(&self) -> PathBuf {
        self.folder.join("root-cert.pem")
    }

    /// The file with the token that clients send.
    pub fn token(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// Sets and removes resources by name, as one push.
    pub fn change(&self, set: impl IntoIterator<Item = Resource>, remove: &[&str]) {
        self.shared.with(|script| {
            for name in remove {
                script.resources.iter_mut().for_each(|resources| drop(resources.remove(*name)));
            }
            for resource in set {
                let address = resource.resource.as_ref().is_none_or(|body| body.type_url == ADDRESS_TYPE);
                let at = usize::from(!address);
                script.resources[at].insert(resource.name.clone(), resource);
            }
        });
        self.shared.pushed.send_modify(|count| *count += 1);
    }

    /// Sets resources, as one push.
    pub fn set(&self, resources: impl IntoIterator<Item = Resource>) {
        self.change(resources, &[]);
    }

    /// Signs certificates from now on, with the authority in this folder (the layout of Istio's `cacerts`).
    pub fn sign_with(&self, folder: &Path) {
        self.shared.with(|script| script.authority = Some(Authority(folder.to_owned())));
    }

    /// Misbehaves from now on.
    pub fn misbehave(&self, fault: Fault) {
        self.shared.with(|script| script.fault = fault);
        self.shared.pushed.send_modify(|count| *count += 1);
    }

    /// Ends all streams with an error.
    pub fn reset_streams(&self) {
        self.shared.reset.send_modify(|count| *count += 1);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.with(|script| script.seen.clone())
    }

    /// Forgets the requests so far.
    pub fn forget_seen(&self) {
        self.shared.with(|script| script.seen.clear());
    }

    /// Number of streams that were asked for so far.
    pub fn streams(&self) -> usize {
        self.shared.with(|script| script.streams)
    }

    /// Waits for a request that fits.
    ///
    /// # Errors
    /// If none comes within ten seconds.
    pub fn wait_seen(&self, what: &str, fits: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(seen) = self.shared.with(|script| script.seen.iter().find(|seen| fits(seen)).cloned()) {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                return Err(format!("no request came that is {what}; these did: {:#?}", self.seen()).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A root of its own and a certificate for loopback: root, chain, key.
fn certificates() -> Result<(String, String, String)> {
    let mut root = CertificateParams::new(Vec::new()).map_err(context("root"))?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().map_err(context("a new key"))?;
    let root_pem = root.self_signed(&root_key).map_err(context("root"))?.pem();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().map_err(context("a new key"))?;
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned(), "istiod.istio-system.svc".to_owned()])
        .map_err(context("leaf"))?;
    let chain = leaf.signed_by(&key, &issuer).map_err(context("leaf"))?.pem();
    Ok((root_pem, chain, key.serialize_pem()))
}
