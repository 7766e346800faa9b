//! The client of a control plane against one that misbehaves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use causeway::istio::wds::{ADDRESS_TYPE, Any};
use causeway::istio::wds_policy::AUTHORIZATION_TYPE;
use causeway::istio::xds_client::{Client, Condition, Handle};
use causeway::istio::xds_proto::{Kind, Resource};
use causeway::istio::xds_settings::{Environment, servers};
use causeway::state::{Model, ModelStore, PolicyScope, SourceId, Workload, file};
use testkit::control_plane::{Fault, Scripted, policy_resource, recorded, resources, workload_resource};

/// A server and a client that follows it.
struct Stage {
    folder: PathBuf,
    plane: Scripted,
    store: Arc<ModelStore>,
    handle: Handle,
    client: Option<(tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Stage {
    fn prepared(more: &str) -> (PathBuf, Scripted, Model) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("causeway-scripted-{}-{number}", std::process::id()));
        let plane = Scripted::start(&folder, None).unwrap();
        let model = model(&plane, more);
        (folder, plane, model)
    }

    fn follow((folder, plane, model): (PathBuf, Scripted, Model)) -> Self {
        let environment: Environment =
            [("POD_NAME", "node-1"), ("POD_NAMESPACE", "istio-system"), ("ISTIO_META_COLOUR", "blue")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect();
        let server = servers(&model.node, &environment).remove(0);
        let store = Arc::new(ModelStore::new(model));
        store.wait_for(SourceId::CONTROL_PLANE);
        let (client, handle) = Client::new(server, store.clone()).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = client.run() => {}
                    _ = stopped => {}
                }
            });
        });
        Self { folder, plane, store, handle, client: Some((stop, thread)) }
    }

    fn start() -> Self {
        let prepared = Self::prepared("");
        prepared.1.set(replayed());
        let stage = Self::follow(prepared);
        stage.wait("the first sync", |model, condition| model.synced && condition.synced);
        stage
    }

    fn wait(&self, what: &str, fits: impl Fn(&Model, &Condition) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fits(&self.store.load(), &self.handle.condition()) {
            assert!(Instant::now() < deadline, "no {what}: {:?}", self.handle.condition());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.client.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        self.plane.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn model(plane: &Scripted, more: &str) -> Model {
    let text = format!(
        "workloads:\n- {{uid: local, namespace: edge, workloadIps: [10.0.9.9], network: cluster1, node: n1}}\ncauseway:\n  \
         node: n1\n  cluster: cluster1\n  network: cluster1\n  identity: {{caDirectory: x}}\n  controlPlane:\n    address: {}\n    \
         rootCert: {}\n    token: {}\n{more}",
        plane.url(),
        plane.root_cert().display(),
        plane.token().display(),
    );
    file::parse(&text, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

/// All that was recorded of one cluster.
fn replayed() -> Vec<Resource> {
    recorded("cluster1").unwrap().into_iter().flat_map(|answer| answer.response.resources).collect()
}

const WEB: &str = "cluster1//Pod/shop/web-n1-0";
const API: &str = "cluster1//Pod/shop/api-n2-0";
const API_AT: &str = "cluster1/10.244.1.12";

#[test]
fn the_first_sync_opens_and_the_files_own_objects_stay_beside() {
    let prepared = Stage::prepared("");
    prepared.1.misbehave(Fault::Silent);
    prepared.1.set(replayed());
    let stage = Stage::follow(prepared);
    stage.plane.wait_seen("a subscription", |seen| seen.request.type_url == AUTHORIZATION_TYPE).unwrap();
    assert!(!stage.store.load().synced, "nothing was answered yet");
    stage.plane.misbehave(Fault::None);
    stage.plane.reset_streams();
    stage.wait("sync", |model, _| model.synced);
    let model = stage.store.load();
    assert_eq!((model.workload_count(), model.service_count()), (19, 10));
    assert!(model.workload("local").is_some());
    let first = stage.plane.seen().remove(0);
    assert_eq!(first.token.as_deref(), Some("Bearer token-1"));
    let node = first.request.node.unwrap();
    assert_eq!(node.id, "ztunnel~1.1.1.1~node-1.istio-system~istio-system.svc.cluster.local");
    let metadata = node.metadata.unwrap().fields;
    for (name, value) in [("NODE_NAME", "n1"), ("NETWORK", "cluster1"), ("CLUSTER_ID", "cluster1"), ("COLOUR", "blue")]
    {
        assert_eq!(metadata[name].kind, Some(Kind::Text(value.to_owned())), "{name}");
    }
}

#[test]
fn a_bad_resource_is_refused_by_name_and_field_while_the_rest_applies() {
    let stage = Stage::start();
    let before = stage.store.load().workload(WEB).unwrap().clone();
    let broken = |change: &dyn Fn(&mut causeway::istio::wds::Workload)| {
        let mut resource = workload_resource(&before);
        let body = resource.resource.as_mut().unwrap();
        let mut address: causeway::istio::wds::Address = prost::Message::decode(body.value.clone()).unwrap();
        if let Some(causeway::istio::wds::AddressType::Workload(workload)) = &mut address.kind {
            change(workload);
        }
        body.value = prost::Message::encode_to_vec(&address).into();
        resource.version = "bad".into();
        resource
    };
    let mut good = (*before).clone();
    good.uid = "cluster1//Pod/shop/web-n1-9".into();
    good.ips = vec!["10.244.0.99".parse().unwrap()];
    stage.plane.set([broken(&|workload| workload.tunnel_protocol = 7), workload_resource(&good)]);
    let nack = stage.plane.wait_seen("a refusal", |seen| seen.request.error_detail.is_some()).unwrap();
    let message = nack.request.error_detail.unwrap().message;
    assert_eq!(message, format!("{WEB}: tunnel_protocol: unknown value 7"));
    stage.wait("the good one", |model, _| model.workload(&good.uid).is_some());
    assert_eq!(stage.store.load().workload(WEB), Some(&before), "the last good version stays");
    assert_eq!(stage.handle.condition().refused.len(), 1);
    stage.plane.set([workload_resource(&before)]);
    stage.wait("the end of the refusal", |_, condition| condition.refused.is_empty());
}

#[test]
fn a_policy_that_cannot_be_read_and_was_never_known_lets_nobody_pass() {
    let stage = Stage::start();
    let mut deny = (**stage.store.load().policy("shop/deny-cidr").unwrap()).clone();
    deny.key = "shop/new".into();
    deny.name = "new".into();
    deny.rules[0][0][0].source_ips.clear();
    let mut resource = policy_resource(&deny);
    let mut raw: causeway::istio::wds_policy::Authorization =
        prost::Message::decode(resource.resource.as_ref().unwrap().value.clone()).unwrap();
    raw.rules[0].clauses[0].matches[0].source_ips =
        vec![causeway::istio::wds_policy::Range { address: vec![1, 2, 3].into(), length: 8 }];
    resource.resource.as_mut().unwrap().value = prost::Message::encode_to_vec(&raw).into();
    let torn = Resource {
        name: "bank/torn".into(),
        resource: Some(Any { type_url: AUTHORIZATION_TYPE.into(), value: vec![0xff; 9].into() }),
        ..Resource::default()
    };
    stage.plane.set([resource, torn]);
    let nack = stage.plane.wait_seen("a refusal", |seen| seen.request.error_detail.is_some()).unwrap();
    let message = nack.request.error_detail.unwrap().message;
    assert!(
        message.contains("shop/new: rules[0].clauses[0].matches[0].source_ips: an address has 4 or 16"),
        "{message}"
    );
    assert!(message.contains("bank/torn: cannot be decoded"), "{message}");
    stage.wait("the substitutes", |model, _| model.policy("bank/torn").is_some());
    let model = stage.store.load();
    let stands_in = model.policy("shop/new").unwrap();
    assert_eq!((stands_in.scope, &stands_in.rules), (PolicyScope::Namespace, &vec![Vec::new()]), "matches everything");
    assert!(stands_in.unreadable.is_some());
    assert_eq!(model.policy("bank/torn").unwrap().scope, PolicyScope::Unreadable);
    let ledger = model.workload("cluster1//Pod/bank/ledger-n2-0").unwrap();
    assert!(model.policies_for(ledger).any(|policy| &*policy.key == "bank/torn"));
    stage.plane.change([policy_resource(&deny)], &["bank/torn"]);
    stage.wait("the good version", |model, _| {
        model.policy("shop/new").is_some_and(|policy| policy.unreadable.is_none())
    });
    stage.wait("the end of the torn one", |model, _| model.policy("bank/torn").is_none());
}

#[test]
fn a_new_stream_tells_what_is_held_and_only_differences_come() {
    let mut stage = Stage::start();
    let generation = stage.store.generation();
    stage.plane.forget_seen();
    stage.plane.reset_streams();
    // An acknowledgement of the stream before may still arrive: only a request without a nonce opens a new one.
    let opens = |seen: &testkit::control_plane::Seen| {
        seen.request.type_url == ADDRESS_TYPE && seen.request.response_nonce.is_empty()
    };
    let again = stage.plane.wait_seen("a subscription", opens).unwrap();
    let versions = again.request.initial_resource_versions;
    assert_eq!(versions.len(), 28);
    let web = replayed().into_iter().find(|resource| resource.name == WEB).unwrap();
    assert_eq!(versions[WEB], web.version);
    stage.wait("the connection", |_, condition| condition.connected);
    stage.plane.wait_seen("an answer", |seen| !seen.request.response_nonce.is_empty()).unwrap();
    assert_eq!(stage.store.generation(), generation, "unchanged policies that come again change nothing");
    // What vanished while nobody listened is gone after the next connection; nothing is before.
    stage.plane.stop();
    stage.plane.change([], &[WEB]);
    stage.wait("the loss", |_, condition| !condition.connected);
    assert!(stage.store.load().workload(WEB).is_some());
    assert!(stage.store.load().synced);
    stage.plane.resume().unwrap();
    stage.wait("the removal", |model, _| model.workload(WEB).is_none());
}

#[test]
fn a_vanished_token_and_root_bundle_keep_the_last_good_ones_and_new_ones_are_read() {
    let stage = Stage::start();
    std::fs::remove_file(stage.plane.token()).unwrap();
    let roots = std::fs::read(stage.plane.root_cert()).unwrap();
    std::fs::remove_file(stage.plane.root_cert()).unwrap();
    let reconnects = |token: &str| {
        stage.plane.forget_seen();
        stage.plane.reset_streams();
        stage.plane.wait_seen(token, |seen| seen.token.as_deref() == Some(token)).unwrap();
    };
    reconnects("Bearer token-1");
    std::fs::write(stage.plane.root_cert(), roots).unwrap();
    std::fs::write(stage.plane.token(), "token-2\n").unwrap();
    reconnects("Bearer token-2");
}

#[test]
fn a_server_that_refuses_is_tried_again_ever_less_often() {
    let stage = Stage::start();
    stage.plane.misbehave(Fault::Unauthenticated);
    let before = stage.plane.streams();
    stage.plane.reset_streams();
    stage.wait("the refusal", |_, condition| {
        condition.error.as_deref().is_some_and(|text| text.contains("Unauthenticated"))
    });
    std::thread::sleep(Duration::from_secs(2));
    let tries = stage.plane.streams() - before;
    // 10 ms doubling: without growth there would be a hundred and more.
    assert!((2..=12).contains(&tries), "{tries} tries");
    assert!(stage.store.load().workload(WEB).is_some(), "what was received stays in force");
    stage.plane.misbehave(Fault::None);
    stage.wait("the connection", |_, condition| condition.connected && condition.error.is_none());
}

#[test]
fn on_demand_asks_for_nothing_but_what_is_named() {
    let prepared = Stage::prepared("    onDemand: true\n");
    prepared.1.set(replayed());
    let stage = Stage::follow(prepared);
    stage.wait("sync", |model, _| model.synced);
    let first = stage.plane.wait_seen("a subscription", |seen| seen.request.type_url == ADDRESS_TYPE).unwrap().request;
    assert_eq!(
        (first.resource_names_subscribe, first.resource_names_unsubscribe),
        (vec!["*".into()], vec!["*".into()])
    );
    let unasked = stage.store.load();
    assert!(unasked.workloads().all(|workload| &*workload.node == "n1"), "those of the own node come unasked");
    assert!(unasked.workload(WEB).is_some() && unasked.workload(API).is_none() && unasked.service_count() == 0);
    assert_eq!(stage.store.load().policies().count(), 7, "policies come all");
    let answered = stage.handle.want(API_AT.to_owned());
    assert_eq!(answered.blocking_recv(), Ok(()), "told when the model holds it");
    assert!(stage.store.load().workload(API).is_some());
    let nobody = || stage.handle.want("cluster1/203.0.113.9".into()).blocking_recv();
    assert_eq!((nobody(), nobody()), (Ok(()), Ok(())), "what is not there is answered too");
    let asked = |seen: &&testkit::control_plane::Seen| {
        seen.request.resource_names_subscribe.contains(&"cluster1/203.0.113.9".to_owned())
    };
    assert_eq!(stage.plane.seen().iter().filter(asked).count(), 1, "the second time is answered from memory");
    // After a lost connection the same is asked for again.
    stage.plane.forget_seen();
    stage.plane.reset_streams();
    let named =
        |seen: &testkit::control_plane::Seen| seen.request.resource_names_subscribe.contains(&API_AT.to_owned());
    stage.plane.wait_seen("the same question", named).unwrap();
}

#[test]
fn of_one_key_from_several_sources_the_control_planes_counts_and_the_files_comes_back() {
    let stage = Stage::start();
    let mut other: Workload = (**stage.store.load().workload("local").unwrap()).clone();
    other.namespace = "shop".into();
    stage.plane.set([workload_resource(&other)]);
    stage.wait("the control plane's", |model, _| {
        model.workload("local").is_some_and(|local| &*local.namespace == "shop")
    });
    stage.store.replace(model(&stage.plane, ""));
    assert_eq!(
        &*stage.store.load().workload("local").unwrap().namespace,
        "shop",
        "a reload of the file changes nothing"
    );
    stage.plane.change([], &["local"]);
    stage.wait("the file's", |model, _| model.workload("local").is_some_and(|local| &*local.namespace == "edge"));
}

#[test]
fn a_peers_resources_are_merged_and_the_own_control_plane_wins() {
    let own = ModelStore::new(Stage::start_empty());
    let (peer, second) = (SourceId::peer(0).unwrap(), SourceId::peer(1).unwrap());
    let all = |source: SourceId, revision: &str| {
        let mut session = causeway::istio::xds_session::Session::default();
        for answer in recorded("cluster1").unwrap() {
            let mut update = session.receive(answer.response).update;
            for workload in &mut update.workloads {
                workload.canonical_revision = revision.into();
            }
            own.apply(source, update);
        }
    };
    let revision = || own.load().workload(WEB).unwrap().canonical_revision.to_string();
    all(second, "second");
    assert_eq!(revision(), "second");
    all(peer, "peer");
    assert_eq!(revision(), "peer");
    all(SourceId::CONTROL_PLANE, "own");
    assert_eq!(revision(), "own");
    let gone = || causeway::state::Update { removed_workloads: vec![WEB.into()], ..Default::default() };
    own.apply(peer, gone());
    assert_eq!(revision(), "own");
    own.apply(SourceId::CONTROL_PLANE, gone());
    assert_eq!(revision(), "second");
    assert_eq!(resources(&own.load()).len(), 35);
}

impl Stage {
    fn start_empty() -> Model {
        let node = "causeway: {node: n1, cluster: cluster1, network: cluster1, identity: {caDirectory: x}}\n";
        file::parse(node, Path::new("model.yaml")).unwrap()
    }
}
