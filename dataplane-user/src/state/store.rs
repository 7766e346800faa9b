//! The newest model, for many readers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::writer::Shadow;
use super::{Applied, Enrolment, Exports, Model, NodeConfig, NodePort, SourceId, Update};

/// Holds the newest snapshot. Readers never wait for writers; each change raises the generation.
#[derive(Debug)]
pub struct ModelStore {
    model: ArcSwap<Model>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
    authorization: watch::Sender<u64>,
    /// Objects that were ever changed.
    changes: AtomicU64,
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    shadow: Shadow,
    /// Sources to hear from before anything may be decided.
    awaited: Vec<SourceId>,
    /// Snapshots that a reader may still hold.
    retired: Vec<Arc<Model>>,
    /// What the file says this node does; what else is known of it is added in the model.
    file: Option<Arc<NodeConfig>>,
    /// What the Kubernetes API tells.
    discovered: Discovered,
}

/// What the file does not know of.
#[derive(Debug, Default)]
struct Discovered {
    /// Further node ports.
    node_ports: Vec<NodePort>,
    /// Keys of the services that clusters share.
    shared: Option<BTreeSet<Arc<str>>>,
}

impl ModelStore {
    /// Starts with a model, as generation 1.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self {
            model: ArcSwap::from_pointee(model),
            generation: AtomicU64::new(1),
            changed: watch::Sender::new(1),
            authorization: watch::Sender::new(1),
            changes: AtomicU64::new(0),
            writer: Mutex::default(),
        }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Model> {
        self.model.load_full()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked published nothing; what the next one starts from is the last snapshot.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets nobody decide anything until this source has told all it knows once.
    pub fn wait_for(&self, source: SourceId) {
        let mut writer = self.writer();
        writer.awaited.push(source);
        let mut model = (*self.load()).clone();
        model.synced = false;
        self.publish(&mut writer, model, false);
    }

    /// A source has told all it knows.
    pub fn synced(&self, source: SourceId) {
        let mut writer = self.writer();
        let before = writer.awaited.len();
        writer.awaited.retain(|awaited| *awaited != source);
        if before > 0 && writer.awaited.is_empty() {
            let mut model = (*self.load()).clone();
            model.synced = true;
            self.publish(&mut writer, model, true);
        }
    }

    /// Applies what a source changes, as one new snapshot; none if nothing is different.
    pub fn apply(&self, source: SourceId, update: Update) -> Applied {
        let mut writer = self.writer();
        let mut model = (*self.load()).clone();
        let applied = writer.shadow.apply(&mut model, source, update);
        self.changes.fetch_add(u64::try_from(applied.changed).unwrap_or(u64::MAX), Ordering::Relaxed);
        if applied.changed > 0 {
            self.publish(&mut writer, model, applied.authorization);
        }
        applied
    }

    /// Takes over what the file says now: what this node does, and the file's own objects. Those of other sources stay.
    pub fn replace(&self, file: Model) -> Applied {
        let mut writer = self.writer();
        let mut model = (*self.load()).clone();
        writer.file = Some(file.node.clone());
        model.set_node(with_discovered(&file.node, &writer.discovered));
        let update = writer.shadow.difference(&model, SourceId::FILE, &file);
        let applied = writer.shadow.apply(&mut model, SourceId::FILE, update);
        self.publish(&mut writer, model, true);
        applied
    }

    /// Takes over which workloads are to be under redirection, and nothing else.
    pub fn enrol(&self, enrolments: Vec<Enrolment>) {
        let mut writer = self.writer();
        let mut model = (*self.load()).clone();
        if let Some(file) = &mut writer.file {
            Arc::make_mut(file).enrol.clone_from(&enrolments);
        }
        model.set_node(NodeConfig { enrol: enrolments, ..(*model.node).clone() }.into());
        self.publish(&mut writer, model, false);
    }

    /// Takes over the node ports that something besides the file knows of, as a watch of services: all there are now. What the
    /// file says of a port counts first.
    pub fn set_node_ports(&self, discovered: Vec<NodePort>) {
        let mut writer = self.writer();
        if writer.discovered.node_ports == discovered {
            return;
        }
        writer.discovered.node_ports = discovered;
        self.recompose(&mut writer, false);
    }

    /// Takes over the keys of all services that clusters share. What is shared no longer is withdrawn from connections that run.
    pub fn set_shared(&self, keys: BTreeSet<Arc<str>>) {
        let mut writer = self.writer();
        if writer.discovered.shared.as_ref() == Some(&keys) {
            return;
        }
        writer.discovered.shared = Some(keys);
        self.recompose(&mut writer, true);
    }

    fn recompose(&self, writer: &mut Writer, authorization: bool) {
        let mut model = (*self.load()).clone();
        let file = writer.file.get_or_insert_with(|| model.node.clone()).clone();
        model.set_node(with_discovered(&file, &writer.discovered));
        self.publish(writer, model, authorization);
    }

    fn publish(&self, writer: &mut Writer, model: Model, authorization: bool) {
        writer.retired.push(self.model.swap(Arc::new(model)));
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.send_replace(generation);
        if authorization {
            self.authorization.send_replace(generation);
        }
        writer.clean();
    }

    /// Frees old snapshots that no reader holds. Call it now and then: it keeps the work of freeing away from readers.
    pub fn clean(&self) {
        self.writer().clean();
    }

    /// Number of objects that sources changed since the start.
    #[must_use]
    pub fn changed_objects(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The generation of the newest snapshot.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A receiver that sees every raise of the generation (possibly several as one).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A receiver that sees only changes after which a connection that was allowed may no longer be: of policies, and of the
    /// identity or list of policies of workloads of this node.
    #[must_use]
    pub fn subscribe_authorization(&self) -> watch::Receiver<u64> {
        self.authorization.subscribe()
    }
}

/// The node's part of the file with what the file does not have.
fn with_discovered(file: &Arc<NodeConfig>, discovered: &Discovered) -> Arc<NodeConfig> {
    let taken = |port: u16| file.node_ports.iter().any(|own| own.port == port || own.health_check == Some(port));
    let free = |port: &&NodePort| !taken(port.port) && !port.health_check.is_some_and(taken);
    let fresh: Vec<NodePort> = discovered.node_ports.iter().filter(free).cloned().collect();
    let is_told = file.exports.is_awaited() && discovered.shared.is_some();
    if fresh.is_empty() && !is_told {
        return file.clone();
    }
    let mut node = (**file).clone();
    node.node_ports.extend(fresh);
    if let Exports::Shared { shared, .. } = &mut node.exports {
        shared.clone_from(&discovered.shared);
    }
    Arc::new(node)
}

impl Writer {
    fn clean(&mut self) {
        self.retired.retain(|model| Arc::strong_count(model) > 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::Path;

    use super::*;
    use crate::state::{IpFamilies, NodePortTarget, file};

    fn model(ports: &str) -> Model {
        let text = format!(
            "causeway: {{node: n, network: net, identity: {{caDirectory: c}}, \
             entry: {{identity: spiffe://cluster.local/ns/i/sa/e}}, nodePorts: [{ports}]}}"
        );
        file::parse(&text, Path::new("m.yaml")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn port(port: u16, health_check: Option<u16>) -> NodePort {
        let target = NodePortTarget::Service { key: "ns/web".into(), port: 80 };
        NodePort { port, target, local: true, health_check, families: IpFamilies::Dual }
    }

    #[test]
    fn discovered_node_ports_stand_beside_those_of_the_file_and_outlive_its_changes() {
        let store = ModelStore::new(model("{gateway: true, nodePort: 31000}"));
        let known = || store.load().node.node_ports.iter().map(|port| port.port).collect::<Vec<_>>();
        store.set_node_ports(vec![port(30080, Some(32080)), port(31000, None), port(30081, Some(31000))]);
        assert_eq!(known(), [31000, 30080], "the file counts first, for health checks too");
        let generation = store.generation();
        store.set_node_ports(vec![port(30080, Some(32080)), port(31000, None), port(30081, Some(31000))]);
        assert_eq!(store.generation(), generation, "the same again changes nothing");
        store.replace(model(""));
        assert_eq!(known(), [30080, 31000, 30081]);
        store.set_node_ports(Vec::new());
        assert_eq!(known(), [0u16; 0]);
    }

    #[test]
    fn what_clusters_share_is_exported_once_it_is_told_and_as_long_as_it_is_shared() {
        let text = |exports: &str| {
            format!(
                "causeway: {{node: n, network: net, controlPlane: {{address: 'https://i:15012'}}, exports: [{exports}]}}"
            )
        };
        let parse = |exports: &str| file::parse(&text(exports), Path::new("m.yaml")).unwrap();
        let store = ModelStore::new(parse("global, ns/always.ns.svc"));
        let exports = || store.load().node.exports.clone();
        assert!(
            exports().is_awaited() && exports().contains("ns/always.ns.svc") && !exports().contains("ns/web.ns.svc")
        );
        let mut withdrawn = store.subscribe_authorization();
        store.set_shared(["ns/web.ns.svc".into()].into());
        assert!(
            !exports().is_awaited() && exports().contains("ns/web.ns.svc") && exports().contains("ns/always.ns.svc")
        );
        assert_eq!(exports().keys().count(), 2);
        store.replace(parse("global"));
        assert!(
            exports().contains("ns/web.ns.svc") && !exports().contains("ns/always.ns.svc"),
            "a changed file keeps it"
        );
        withdrawn.mark_unchanged();
        store.set_shared(BTreeSet::new());
        assert!(!exports().contains("ns/web.ns.svc") && withdrawn.has_changed().unwrap());
        store.replace(parse("ns/always.ns.svc"));
        store.set_shared(["ns/web.ns.svc".into()].into());
        assert!(!exports().contains("ns/web.ns.svc"), "a file that does not ask for it is not given it");
    }
}
