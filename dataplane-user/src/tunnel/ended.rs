//! Telling the streams of a tunnel why it ends.

use std::{rc::Rc, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

/// Time for streams that were told to reset their applications before the tunnel goes.
pub const ENDING: Duration = Duration::from_millis(200);

/// Tells when and why a tunnel ends for its peer's sake.
#[derive(Clone, Debug)]
pub struct Ended(watch::Receiver<Option<Rc<str>>>);

/// The other half of [`Ended`].
pub struct End(watch::Sender<Option<Rc<str>>>);

impl Ended {
    /// Both halves.
    #[must_use]
    pub fn new() -> (End, Self) {
        let (sender, receiver) = watch::channel(None);
        (End(sender), Self(receiver))
    }

    /// Waits for the end; never returns if the tunnel ends for another reason.
    pub async fn why(mut self) -> String {
        match self.0.wait_for(Option::is_some).await {
            Ok(why) => why.as_deref().unwrap_or_default().to_owned(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl End {
    /// Tells all streams.
    pub fn tell(&self, why: &str) {
        self.0.send_replace(Some(why.into()));
    }
}

/// A chain that outlives its session.
pub fn owned(chain: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
}
