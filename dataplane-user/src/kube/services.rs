//! Follows services and says whose node ports are to be steered.

use std::pin::pin;
use std::sync::Arc;

use ::kube::runtime::WatchStreamExt;
use ::kube::runtime::watcher::{Config, Event, watcher};
use ::kube::{Api, Client};
use k8s_openapi::api::core::v1::Service;
use tokio::sync::watch;
use tokio_stream::StreamExt;

use super::Settings;
use super::complaints::{Complaints, Failed};
use super::listed::Listed;
use super::node_ports::{Candidate, Facts, Selection, sort};
use super::source::heard;

/// Follows until nobody listens any more. Where no service is asked for, the API is not asked either.
pub(super) async fn follow(client: Client, settings: Settings, told: watch::Sender<Option<Arc<[Candidate]>>>) {
    if settings.node_ports == Selection::None {
        told.send_replace(Some(Arc::default()));
        return told.closed().await;
    }
    let mut complaints = Complaints::new(client.clone(), &settings.node);
    let mut known: Listed<Option<Facts>> = Listed::default();
    let mut trouble = None;
    let mut services = pin!(watcher(Api::<Service>::all(client), Config::default()).default_backoff());
    loop {
        let event = tokio::select! {
            event = services.next() => event,
            () = told.closed() => return,
        };
        let Some(event) = event else { return };
        complaints.work();
        let Some(event) = heard("services", event, &mut trouble) else { continue };
        let partial = matches!(event, Event::Init | Event::InitApply(_));
        // Services without node ports keep a place: one whose type changes must lose those it had.
        known.take(event, |service: &Service| Some((service.metadata.uid.clone()?, Facts::of(service))));
        if partial || !known.complete {
            continue;
        }
        let outcome = sort(known.all.values().flatten(), settings.node_ports, &settings.domain);
        for (facts, why) in &outcome.refused {
            let failed = Failed { reason: "NodePortNotSteered", action: "Steer", line: "steered" };
            complaints.complain(facts.reference(), failed, why);
        }
        complaints.retain(|uid| outcome.refused.iter().any(|(facts, _)| facts.uid == uid));
        let candidates: Arc<[Candidate]> = outcome.candidates.into();
        told.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&candidates);
            if changed {
                *before = Some(candidates);
            }
            changed
        });
    }
}
