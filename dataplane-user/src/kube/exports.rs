//! Which services of this cluster all clusters share. The control plane does not say it of a service, so the label is read.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::kube::core::PartialObjectMeta;
use ::kube::runtime::WatchStreamExt;
use ::kube::runtime::watcher::{Config, watcher};
use ::kube::{Api, Client};
use k8s_openapi::api::core::v1::Service;
use tokio_stream::StreamExt;
use tracing::{error, info};

use super::listed::Listed;
use super::source::heard;
use crate::state::ModelStore;

/// What selects them.
const SHARED: &str = "istio.io/global=true";
/// How often a way to the API is looked for.
const AGAIN: Duration = Duration::from_secs(5);

/// Follows the labels for ever. While the API is away, what was shared stays so.
pub async fn follow(domain: Arc<str>, store: Arc<ModelStore>) {
    let client = client().await;
    let selected = Config::default().labels(SHARED);
    let mut services = pin!(watcher(Api::<PartialObjectMeta<Service>>::all(client), selected).default_backoff());
    let mut known: Listed<Arc<str>> = Listed::default();
    let mut trouble = None;
    while let Some(event) = services.next().await {
        let Some(event) = heard("shared services", event, &mut trouble) else { continue };
        known.take(event, |service| {
            let (namespace, name) = (service.metadata.namespace.as_ref()?, service.metadata.name.as_ref()?);
            let key = format!("{namespace}/{name}.{namespace}.svc.{domain}");
            Some((key.clone(), key.into()))
        });
        if known.complete {
            store.set_shared(known.all.values().cloned().collect());
        }
    }
}

async fn client() -> Client {
    let mut told = String::new();
    loop {
        match super::client().await {
            Ok(client) => {
                info!("following the Kubernetes API for services labelled {SHARED}");
                return client;
            }
            Err(why) if why != told => {
                error!("nothing that is exported as \"global\" is forwarded: {why}");
                told = why;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}
