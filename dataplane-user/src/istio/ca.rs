//! Certificates from Istio's authority: `istio.v1.auth.IstioCertificateService`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::channel::{ChannelConfig, ChannelError, Connection, Connector, describe};
use super::token::Claims;
use crate::identity::{Authority, AuthorityError, Issued, Issuing, SpiffeId};

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The field of the request's metadata that names the workload a node's proxy speaks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// How long the authority may take.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_seconds: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Struct {
    #[prost(map = "string, message", tag = "1")]
    fields: HashMap<String, Value>,
}

/// `google.protobuf.Value` with a text in it.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    text: Option<String>,
}

/// Istio's certificate authority, asked on behalf of the workloads of one node.
pub struct IstioCa {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    node: String,
    connection: Mutex<Option<(Connection, Option<String>)>>,
    roots: std::sync::Mutex<Option<String>>,
    roots_version: AtomicU64,
}

impl IstioCa {
    /// Does not connect yet. `node` is this node's name, for explanations.
    ///
    /// # Errors
    /// [`ChannelError::Config`].
    pub fn new(config: &ChannelConfig, node: &str) -> Result<Self, ChannelError> {
        let shared = Shared {
            connector: Connector::new(config)?,
            node: node.to_owned(),
            connection: Mutex::default(),
            roots: std::sync::Mutex::default(),
            roots_version: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Authority for IstioCa {
    fn name(&self) -> String {
        format!("Istio's authority at {}", self.shared.connector.address())
    }

    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Issuing {
        let (shared, id) = (self.shared.clone(), id.clone());
        Box::pin(async move { shared.issue(&id, ttl).await })
    }

    fn roots_version(&self) -> u64 {
        // A bundle that cannot be read is reported when it is needed.
        let Ok(Some(now)) = self.shared.connector.roots() else {
            return self.shared.roots_version.load(Ordering::Relaxed);
        };
        let mut last = self.shared.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&now) {
            if last.is_some() {
                self.shared.roots_version.fetch_add(1, Ordering::Relaxed);
            }
            *last = Some(now);
        }
        self.shared.roots_version.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<Issued, AuthorityError> {
        let (csr, key) = signing_request(id).map_err(|error| AuthorityError::Refused(error.to_string()))?;
        let token = self.connector.token();
        let request = CertificateRequest {
            csr,
            validity_seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: impersonation(id, token.as_deref().and_then(Claims::read).as_ref()),
        };
        let response = match timeout(ANSWER, self.call(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.explain(id, error).await),
            Err(_) => {
                self.connection.lock().await.take();
                return Err(AuthorityError::Unreachable(format!(
                    "{} did not answer within {} s",
                    self.connector.address(),
                    ANSWER.as_secs()
                )));
            }
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        issued(&response.cert_chain, key)
    }

    async fn call(&self, request: CertificateRequest) -> Result<CertificateResponse, CallError> {
        let mut connection = self.connection().await.map_err(CallError::Channel)?;
        connection.ready().await.map_err(|error| {
            CallError::Channel(ChannelError::Connect {
                address: self.connector.address().to_owned(),
                reason: super::channel::causes(&error),
            })
        })?;
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let answer = connection.unary(Request::new(request), PathAndQuery::from_static(METHOD), codec).await;
        Ok(answer.map_err(CallError::Status)?.into_inner())
    }

    /// The connection; a new one if the roots on disk are others than those it was made with.
    async fn connection(&self) -> Result<Connection, ChannelError> {
        let roots = self.connector.roots()?;
        let mut held = self.connection.lock().await;
        if let Some((connection, with)) = &*held
            && *with == roots
        {
            return Ok(connection.clone());
        }
        let connection = self.connector.connect().await?;
        *held = Some((connection.clone(), roots));
        Ok(connection)
    }

    /// Turns a failure into words that say what to do.
    async fn explain(&self, id: &SpiffeId, error: CallError) -> AuthorityError {
        let status = match error {
            CallError::Channel(error @ ChannelError::Connect { .. }) => {
                self.connection.lock().await.take();
                return AuthorityError::Unreachable(error.to_string());
            }
            CallError::Channel(error) => return AuthorityError::Unreachable(error.to_string()),
            CallError::Status(status) => status,
        };
        let said = format!("{} says {}", self.connector.address(), describe(&status));
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                AuthorityError::Refused(format!("{said}; {}", self.advice(id)))
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                self.connection.lock().await.take();
                AuthorityError::Unreachable(said)
            }
            Code::FailedPrecondition => AuthorityError::Unreachable(status.message().to_owned()),
            _ => AuthorityError::Refused(said),
        }
    }

    /// What to look at when istiod, which tells no reason, refuses.
    fn advice(&self, id: &SpiffeId) -> String {
        let token = self.connector.token();
        let claims = token.as_deref().and_then(Claims::read).unwrap_or_default();
        if let Some(since) = claims.expired_for(SystemTime::now()) {
            return format!("the token expired {} s ago: is its file still renewed?", since.as_secs());
        }
        let account = claims.service_account();
        let account = account.as_deref().unwrap_or("of another kind than a service account's");
        let node = claims.node().unwrap_or(&self.node);
        let bound = match claims.pod() {
            Some(pod) => format!("the token is bound to pod {pod}, which must exist"),
            None => "the token is bound to no pod, which it must be".to_owned(),
        };
        format!(
            "check that a pod with service account {}/{} runs on node {node}, that the token's account {account} is in istiod's CA_TRUSTED_NODE_ACCOUNTS, that istiod knows this cluster by the clusterId configured here, and that {bound}",
            id.namespace(),
            id.service_account()
        )
    }
}

enum CallError {
    Channel(ChannelError),
    Status(Status),
}

/// What names the workload that is spoken for. A gateway in a pod of its own asks for what its token says it is: that needs no
/// trust of istiod in its account, and would be refused as impersonation.
fn impersonation(id: &SpiffeId, claims: Option<&Claims>) -> Option<Struct> {
    let own = claims.and_then(Claims::service_account);
    if own == Some(format!("{}/{}", id.namespace(), id.service_account())) {
        return None;
    }
    let impersonated = Value { text: Some(id.to_string()) };
    Some(Struct { fields: HashMap::from([(IMPERSONATED.to_owned(), impersonated)]) })
}

/// A fresh P-256 key and a request for a certificate of `id`.
fn signing_request(id: &SpiffeId) -> Result<(String, KeyPair), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((csr, key))
}

/// Takes an answer apart: the leaf, what stands between, and the roots in the last element.
fn issued(chain: &[String], key: rustls::pki_types::PrivateKeyDer<'static>) -> Result<Issued, AuthorityError> {
    let refused = |reason: &str| AuthorityError::Refused(format!("the certificate authority {reason}"));
    let parse = |text: &String| {
        CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| refused(&format!("sent something else than PEM: {error}")))
    };
    let Some((roots, rest)) = chain.split_last().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(refused("sent no chain with a root at its end"));
    };
    let roots = parse(roots)?;
    let mut chain = Vec::new();
    for text in rest {
        chain.extend(parse(text)?);
    }
    Ok(Issued { chain, key, roots })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use prost::Message as _;

    #[test]
    fn nobody_impersonates_itself() {
        let id = SpiffeId::parse("spiffe://td/ns/istio-eastwest/sa/gw").unwrap();
        // {"sub":"system:serviceaccount:istio-eastwest:gw"}
        let own = Claims::read("e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6aXN0aW8tZWFzdHdlc3Q6Z3cifQ.x").unwrap();
        assert_eq!(impersonation(&id, Some(&own)), None);
        let other = SpiffeId::parse("spiffe://td/ns/istio-eastwest/sa/web").unwrap();
        assert!(impersonation(&other, Some(&own)).is_some(), "of another account it is one");
        assert!(impersonation(&id, None).is_some(), "and so it is for a bearer that says nothing");
    }

    #[test]
    fn the_request_has_istios_field_numbers() {
        let request = CertificateRequest {
            csr: "c".into(),
            validity_seconds: 60,
            metadata: Some(Struct {
                fields: HashMap::from([(IMPERSONATED.to_owned(), Value { text: Some("s".into()) })]),
            }),
        };
        let mut wanted = b"\x0a\x01c\x18\x3c\x22\x1d\x0a\x1b\x0a\x14ImpersonatedIdentity\x12\x03\x1a\x01s".to_vec();
        assert_eq!(request.encode_to_vec(), wanted);
        wanted.pop();
        assert!(CertificateRequest::decode(wanted.as_slice()).is_err());
    }

    #[test]
    fn answers_without_chain_or_root_are_refused() {
        let key = || PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der()).into();
        for chain in [vec![], vec!["only one".to_owned()], vec!["-----BEGIN X".to_owned(), String::new()]] {
            // A leaf that is missing is found by the store's check.
            let answer = issued(&chain, key());
            assert!(answer.is_err() || answer.is_ok_and(|issued| issued.chain.is_empty()), "{chain:?}");
        }
    }
}
