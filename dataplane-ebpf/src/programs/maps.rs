//! Every map, with who writes and who reads it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash};
use causeway_ebpf::abi::{
    Addr, Config, DnsPod, EnginePort, EntryFlow, EntryFragment, Flow, FlowKey, Hold, ListenerKey, NodePort, Pod,
    PortKey, Record, ServerKey,
};
use causeway_ebpf::counter;

/// One entry; written by user space.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Pods whose outbound connections are redirected, by netns cookie; written by user space.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4096, 0);

/// Netns cookie by address of an enrolled pod; written by user space.
#[map]
pub static POD_BY_IP: HashMap<Addr, u64> = HashMap::with_max_entries(32768, 0);

/// Cgroup ids of engines, whose connections are never redirected; written by user space.
#[map]
pub static ENGINES: HashMap<u64, u32> = HashMap::with_max_entries(64, 0);

/// Until when connections of pods wait, by the pod's cgroup id: see `decide::hold`. Written by user space.
#[map]
pub static HELD: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);

/// What a socket's connection waits for, or has waited for; lives and dies with its socket.
#[btf_map]
pub static HOLDS: SkStorage<Hold> = SkStorage::new();

/// Cookie of the node's own network namespace, where connections of the node are told from others; written by user space.
#[map]
pub static NODE_NETNS: HashMap<u64, u32> = HashMap::with_max_entries(8, 0);

/// Ports that are never redirected; written by user space.
#[map]
pub static EXCLUDED_PORTS: HashMap<PortKey, u8> = HashMap::with_max_entries(4096, 0);

/// Address ranges that are never redirected, IPv4 ones as v4-mapped with 96 more prefix bits; written by user space.
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<Addr, u8> = LpmTrie::with_max_entries(4096, 1);

/// Listening sockets of the engine; written by user space. An entry goes by itself when its socket is closed.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16384, 0);

/// What user space needs to undo an enrolment after a crash. No program reads it.
#[map]
pub static RECORDS: HashMap<u64, Record> = HashMap::with_max_entries(4096, 1);

/// Connections between their SYN and their acceptance. Preallocated: an insert in the middle of a burst must not depend on the
/// allocator.
#[map]
pub static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(65536, 0);

/// What the client end dialled; lives and dies with its socket.
#[btf_map]
pub static DIALLED: SkStorage<Flow> = SkStorage::new();

/// Original destination of an accepted connection; read by the engine through the socket's descriptor.
#[btf_map]
pub static ORIGINAL: SkStorage<Flow> = SkStorage::new();

/// Pods whose DNS queries are captured, by netns cookie; written by user space.
#[map]
pub static DNS_PODS: HashMap<u64, DnsPod> = HashMap::with_max_entries(4096, 0);

/// Engine port by the name server it stands for.
#[map]
pub static DNS_PORTS: HashMap<ServerKey, u16> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Name server by engine port; the inverse of `DNS_PORTS`, and written first.
#[map]
pub static DNS_SERVERS: HashMap<EnginePort, Addr> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Ports of the node's addresses whose connections go to the engine, with their state; written by user space.
#[map]
pub static NODE_PORTS: HashMap<NodePort, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Connections taken at an uplink, with the index of that. The one that was silent longest gives way.
#[map]
pub static ENTRY_FLOWS: LruHashMap<EntryFlow, u32> = LruHashMap::with_max_entries(131_072, 0);

/// Datagrams in pieces that belong to such connections.
#[map]
pub static ENTRY_FRAGMENTS: LruHashMap<EntryFragment, u32> = LruHashMap::with_max_entries(4096, 0);

/// Index of the node's end of the device into the engine's own namespace, 0 without one; written by user space.
#[map]
pub static ENTRY_DEVICE: Array<u32> = Array::with_max_entries(1, 0);

/// Addresses of the engine's own namespace for callers on this node, IPv4 first; written by user space.
#[map]
pub static ENTRY_LOCAL: Array<Addr> = Array::with_max_entries(2, 0);

/// What a socket of this node dialled that was sent to the engine's own namespace; lives and dies with its socket.
#[btf_map]
pub static ENTRY_DIALLED: SkStorage<Flow> = SkStorage::new();

/// Cells of [`causeway_ebpf::counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT as u32, 0);
