//! Two control planes for one mesh model: the own one and a peer cluster's, both alive, both failing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::istio::xds_client::{Client, Handle};
use causeway::istio::xds_proto::Resource;
use causeway::istio::xds_settings::{Environment, servers};
use causeway::state::{Model, ModelStore, SourceId, Workload, file};
use testkit::control_plane::{Fault, Scripted, workload_resource};

struct Stage {
    folder: PathBuf,
    planes: [Scripted; 2],
    store: Arc<ModelStore>,
    handles: Vec<Handle>,
    clients: Option<(tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Stage {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("causeway-peers-{}", std::process::id()));
        let planes = ["own", "peer"].map(|name| Scripted::start(&folder.join(name), None).unwrap());
        let settings = |plane: &Scripted| {
            let (root, token) = (plane.root_cert(), plane.token());
            format!("address: \"{}\", rootCert: {}, token: {}", plane.url(), root.display(), token.display())
        };
        let text = format!(
            "causeway:\n  node: n1\n  cluster: c1\n  network: net1\n  identity: {{caDirectory: x}}\n  controlPlane: {{{}, \
             peers: [{{{}, clusterId: c2}}]}}\n",
            settings(&planes[0]),
            settings(&planes[1])
        );
        let model = file::parse(&text, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"));
        let servers = servers(&model.node, &Environment::default());
        assert_eq!(servers.len(), 2);
        let store = Arc::new(ModelStore::new(model));
        store.wait_for(SourceId::CONTROL_PLANE);
        let made = servers.into_iter().map(|server| Client::new(server, store.clone()).unwrap());
        let (clients, handles): (Vec<Client>, Vec<Handle>) = made.unzip();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for client in clients {
                    tokio::spawn(client.run());
                }
                let _ = stopped.await;
            });
        });
        Self { folder, planes, store, handles, clients: Some((stop, thread)) }
    }

    fn wait(&self, what: &str, fits: impl Fn(&Model) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fits(&self.store.load()) {
            let conditions: Vec<_> = self.handles.iter().map(Handle::condition).collect();
            assert!(Instant::now() < deadline, "no {what}: {conditions:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_connected(&self, connected: [bool; 2]) {
        self.wait("connections", |_| self.handles.iter().map(Handle::connected).eq(connected));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.clients.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        self.planes.iter_mut().for_each(Scripted::stop);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A workload as one control plane tells of it.
fn told(uid: &str, by: &str) -> Resource {
    let text = format!(
        "workloads:\n- {{uid: \"{uid}\", namespace: shop, workloadIps: [10.0.0.1], network: net1}}\ncauseway: {{node: n1, \
         identity: {{caDirectory: x}}}}\n"
    );
    let model = file::parse(&text, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"));
    let mut workload: Workload = (**model.workload(uid).unwrap()).clone();
    workload.canonical_revision = by.into();
    workload_resource(&workload)
}

fn says(model: &Model, uid: &str, by: Option<&str>) -> bool {
    model.workload(uid).map(|workload| &*workload.canonical_revision) == by
}

#[test]
fn two_living_control_planes_are_merged_and_outlive_each_other() {
    let mut stage = Stage::start();
    let [own, peer] = &stage.planes;
    peer.set([told("shared", "peer"), told("only-peer", "peer")]);
    own.misbehave(Fault::Silent);
    own.reset_streams();
    own.set([told("shared", "own"), told("only-own", "own")]);
    stage.wait("what the peer tells", |model| says(model, "only-peer", Some("peer")));
    assert!(!stage.store.load().synced, "the own one decides when all is told");
    own.misbehave(Fault::None);
    own.reset_streams();
    stage.wait("the own one's", |model| model.synced && says(model, "only-own", Some("own")));
    assert!(says(&stage.store.load(), "shared", Some("own")), "the own one wins");

    // The peer goes: what it told stays, and the own one goes on.
    stage.planes[1].stop();
    stage.wait_connected([true, false]);
    stage.planes[0].set([told("later", "own")]);
    stage.wait("a change while the peer is away", |model| says(model, "later", Some("own")));
    assert!(says(&stage.store.load(), "only-peer", Some("peer")), "what the peer told stays");
    // What changed there meanwhile arrives when it is back.
    stage.planes[1].change([told("new-peer", "peer")], &["only-peer"]);
    stage.planes[1].resume().unwrap();
    stage.wait("the peer's changes", |model| says(model, "new-peer", Some("peer")) && says(model, "only-peer", None));

    // The own one goes: the peer goes on, and cannot take over what the own one told.
    stage.planes[0].stop();
    stage.wait_connected([false, true]);
    stage.planes[1].set([told("shared", "peer-again"), told("last", "peer")]);
    stage.wait("a change while the own one is away", |model| says(model, "last", Some("peer")));
    assert!(says(&stage.store.load(), "shared", Some("own")));
    stage.planes[0].change([], &["shared"]);
    stage.planes[0].resume().unwrap();
    stage.wait("the peer's word on what the own one let go", |model| says(model, "shared", Some("peer-again")));
    stage.wait_connected([true, true]);
}
