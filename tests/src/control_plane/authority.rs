//! Istio's certificate service, signing with an authority of a topology: what proxies other than ours get theirs from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use rcgen::{
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tonic::{Request, Response, Status};

use crate::{Result, context};

/// The one method of the service.
pub(super) const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CertificateResponse {
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

/// Signs for whoever asks: the folder has the layout of Istio's `cacerts`.
#[derive(Debug, Clone)]
pub(super) struct Authority(pub(super) PathBuf);

impl Authority {
    /// Leaf, intermediate and root for the identity that the request impersonates or, without that, names itself.
    fn issue(&self, request: &CertificateRequest) -> Result<CertificateResponse> {
        let read = |name: &str| {
            let path: &Path = &self.0.join(name);
            std::fs::read_to_string(path).map_err(context(path.display()))
        };
        let ca = read("ca-cert.pem")?;
        let key = KeyPair::from_pem(&read("ca-key.pem")?).map_err(context("ca-key.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&ca, key).map_err(context("ca-cert.pem"))?;
        let mut signing = CertificateSigningRequestParams::from_pem(&request.csr).map_err(context("the request"))?;
        let impersonated = request.metadata.as_ref().and_then(|data| data.fields.get("ImpersonatedIdentity"));
        if let Some(identity) = impersonated.and_then(|value| value.text.as_deref()) {
            let name = identity.try_into().map_err(context(identity))?;
            signing.params.subject_alt_names = vec![SanType::URI(name)];
        }
        signing.params.distinguished_name.remove(DnType::CommonName);
        signing.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        signing.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        signing.params.not_before = now.into();
        signing.params.not_after = (now + std::time::Duration::from_secs(3600)).into();
        let leaf = signing.signed_by(&issuer).map_err(context("signing"))?;
        Ok(CertificateResponse { cert_chain: vec![leaf.pem(), ca, read("root-cert.pem")?] })
    }
}

impl tower_service::Service<Request<CertificateRequest>> for Authority {
    type Response = Response<CertificateResponse>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let answer = self.issue(request.get_ref()).map(Response::new);
        Box::pin(std::future::ready(answer.map_err(|error| Status::invalid_argument(error.to_string()))))
    }
}
