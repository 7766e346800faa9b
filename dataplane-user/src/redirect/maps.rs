//! The maps of the programs, opened for user space.

use std::path::Path;

use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash};
use causeway_ebpf::abi::{
    Addr, Config, DnsPod, EnginePort, EntryFlow, Flow, ListenerKey, NodePort, Pod, PortKey, Record, ServerKey,
};

use super::error::LoadError;

/// A type of the shared ABI as a key or value of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

/// Types of the ABI: integers and arrays of integers without padding.
pub(super) trait Abi: Copy + 'static {}
impl Abi for Config {}
impl Abi for Pod {}
impl Abi for DnsPod {}
impl Abi for EnginePort {}
impl Abi for EntryFlow {}
impl Abi for NodePort {}
impl Abi for ServerKey {}
impl Abi for Flow {}
impl Abi for ListenerKey {}
impl Abi for PortKey {}
impl Abi for Record {}

// SAFETY: every `Abi` type is `repr(C)`, made of integers and free of padding (asserted next to their definition), so that any
// bytes are a value and every byte is defined.
unsafe impl<T: Abi> aya::Pod for Plain<T> {}

/// Maps that are pinned: they carry the state a next daemon adopts.
pub(super) const PINNED: [&str; 24] = [
    "CONFIG",
    "PODS",
    "POD_BY_IP",
    "ENGINES",
    "HELD",
    "HOLDS",
    "NODE_NETNS",
    "EXCLUDED_PORTS",
    "EXCLUDED_CIDRS",
    "LISTENERS",
    "RECORDS",
    "FLOWS",
    "DIALLED",
    "ORIGINAL",
    "DNS_PODS",
    "DNS_PORTS",
    "DNS_SERVERS",
    "NODE_PORTS",
    "ENTRY_FLOWS",
    "ENTRY_FRAGMENTS",
    "ENTRY_DEVICE",
    "ENTRY_LOCAL",
    "ENTRY_DIALLED",
    "COUNTERS",
];

/// Every map user space writes or reads.
pub(super) struct Maps {
    pub(super) config: Array<MapData, Plain<Config>>,
    pub(super) pods: HashMap<MapData, u64, Plain<Pod>>,
    pub(super) pod_by_ip: HashMap<MapData, Addr, u64>,
    pub(super) engines: HashMap<MapData, u64, u32>,
    pub(super) node_netns: HashMap<MapData, u64, u32>,
    pub(super) excluded_ports: HashMap<MapData, Plain<PortKey>, u8>,
    pub(super) excluded_cidrs: LpmTrie<MapData, Addr, u8>,
    pub(super) listeners: SockHash<MapData, Plain<ListenerKey>>,
    pub(super) records: HashMap<MapData, u64, Plain<Record>>,
    pub(super) dns_pods: HashMap<MapData, u64, Plain<DnsPod>>,
    pub(super) dns_ports: HashMap<MapData, Plain<ServerKey>, u16>,
    pub(super) dns_servers: HashMap<MapData, Plain<EnginePort>, Addr>,
    pub(super) node_ports: HashMap<MapData, Plain<NodePort>, u32>,
    pub(super) entry_flows: HashMap<MapData, Plain<EntryFlow>, u32>,
    pub(super) entry_device: Array<MapData, u32>,
    pub(super) entry_local: Array<MapData, Addr>,
    pub(super) counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Several of aya's map types have no debug form of their own.
        formatter.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of a loaded object; the storage of original destinations comes apart.
    pub(super) fn take(object: &mut Ebpf) -> Result<(Self, SkStorage<MapData, Plain<Flow>>), LoadError> {
        let maps = Self {
            config: taken(object, "CONFIG")?,
            pods: taken(object, "PODS")?,
            pod_by_ip: taken(object, "POD_BY_IP")?,
            engines: taken(object, "ENGINES")?,
            node_netns: taken(object, "NODE_NETNS")?,
            excluded_ports: taken(object, "EXCLUDED_PORTS")?,
            excluded_cidrs: taken(object, "EXCLUDED_CIDRS")?,
            listeners: taken(object, "LISTENERS")?,
            records: taken(object, "RECORDS")?,
            dns_pods: taken(object, "DNS_PODS")?,
            dns_ports: taken(object, "DNS_PORTS")?,
            dns_servers: taken(object, "DNS_SERVERS")?,
            node_ports: taken(object, "NODE_PORTS")?,
            entry_flows: taken(object, "ENTRY_FLOWS")?,
            entry_device: taken(object, "ENTRY_DEVICE")?,
            entry_local: taken(object, "ENTRY_LOCAL")?,
            counters: taken(object, "COUNTERS")?,
        };
        Ok((maps, taken(object, "ORIGINAL")?))
    }
}

fn taken<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<T, LoadError> {
    let map = object.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
    map.and_then(T::try_from).map_err(in_map(name))
}

/// Names the map of an error.
pub(super) fn in_map(map: &'static str) -> impl Fn(MapError) -> LoadError {
    move |source| LoadError::Map { map, source: Box::new(source) }
}

/// Records an earlier daemon left, by netns cookie, read from their pin.
pub(super) fn pinned_records(path: &Path) -> Result<Vec<(u64, Record)>, LoadError> {
    let map = MapData::from_pin(path).map_err(in_map("RECORDS"))?;
    let map: HashMap<MapData, u64, Plain<Record>> = HashMap::try_from(Map::HashMap(map)).map_err(in_map("RECORDS"))?;
    Ok(map.iter().filter_map(Result::ok).map(|(cookie, Plain(record))| (cookie, record)).collect())
}
