//! A mesh model at its largest: memory, time of changes, and what readers notice.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway::istio::wds::{self, ADDRESS_TYPE, AddressType, Any, UInt32Value};
use causeway::istio::wds_policy::AUTHORIZATION_TYPE;
use causeway::istio::xds_proto::{DeltaDiscoveryResponse, Resource};
use causeway::istio::xds_session::Session;
use causeway::state::{ModelStore, SourceId, file};
use prost::Message;

use crate::{Result, context};

const MIB: f64 = 1024.0 * 1024.0;
/// Pause between two lookups of a reader: it measures how long one takes, not how many fit.
const PAUSE: Duration = Duration::from_micros(20);

/// Writes the messages, then measures in a process of its own.
///
/// # Errors
/// What could not be written or started.
pub fn run(workloads: u32, services: u32, changes: u32, rounds: u32) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("causeway-scale-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(context(folder.display()))?;
    let done = write(&folder, workloads, services, changes, rounds).and_then(|()| {
        println!("{workloads} workloads in {services} services; {changes} endpoints change in each of {rounds} rounds");
        let program = std::env::current_exe().map_err(context("own path"))?;
        let mut command = Command::new(program);
        command.arg("--measure").arg(&folder).args(["--rounds", &rounds.to_string()]);
        let status = command.status().map_err(context("cannot start the measuring half"))?;
        if status.success() { Ok(()) } else { Err(format!("the measuring half ended with {status}").into()) }
    });
    let _ = fs::remove_dir_all(&folder);
    done
}

fn write(folder: &Path, workloads: u32, services: u32, changes: u32, rounds: u32) -> Result<()> {
    let put = |name: String, response: DeltaDiscoveryResponse| {
        let path = folder.join(name);
        fs::write(&path, response.encode_to_vec()).map_err(context(path.display()))
    };
    let all = (0..services).map(service).chain((0..workloads).map(|number| workload(number, services, 0)));
    put("all".into(), response(ADDRESS_TYPE, all.collect()))?;
    put("policies".into(), response(AUTHORIZATION_TYPE, Vec::new()))?;
    for round in 1..=rounds {
        put(format!("change-{round}"), response(ADDRESS_TYPE, changed(workloads, services, changes, round)))?;
    }
    Ok(())
}

/// What changes in a round: as many endpoints, spread over all.
pub(super) fn changed(workloads: u32, services: u32, changes: u32, round: u32) -> Vec<Resource> {
    let step = (workloads / changes.max(1)).max(1);
    (0..changes).map(|number| workload((number * step + round) % workloads.max(1), services, round)).collect()
}

fn response(type_url: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { resources, type_url: type_url.into(), nonce: "n".into(), ..Default::default() }
}

fn resource(name: String, kind: AddressType, round: u32) -> Resource {
    let value = wds::Address { kind: Some(kind) }.encode_to_vec().into();
    Resource {
        version: format!(
            "{:x}",
            name.bytes().fold(u64::from(round) + 1, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        ),
        resource: Some(Any { type_url: ADDRESS_TYPE.into(), value }),
        name,
        aliases: Vec::new(),
    }
}

fn vip(number: u32) -> Ipv4Addr {
    // Beside the addresses that the topology's own services have.
    Ipv4Addr::from_bits(0x0a68_0000 + number)
}

fn pod_ip(number: u32, round: u32) -> Ipv4Addr {
    // A changed endpoint is a restarted pod: another address under one name.
    Ipv4Addr::from_bits(0x0b00_0000 + number + (round << 20))
}

fn hostname(number: u32) -> String {
    format!("service-{number}.namespace-{}.svc.cluster.local", number % 500)
}

pub(super) fn service(number: u32) -> Resource {
    let namespace = format!("namespace-{}", number % 500);
    let name = format!("{namespace}/{}", hostname(number));
    let body = wds::Service {
        name: format!("service-{number}"),
        hostname: hostname(number),
        addresses: vec![wds::NetworkAddress {
            network: "network1".into(),
            address: vip(number).octets().to_vec().into(),
            length: None,
        }],
        ports: vec![wds::Port { service_port: 80, target_port: 8080, app_protocol: 1 }],
        subject_alt_names: vec![format!("spiffe://cluster.local/ns/{namespace}/sa/account-{number}")],
        ip_families: 1,
        canonical: true,
        namespace,
        ..Default::default()
    };
    resource(name, AddressType::Service(body), 0)
}

pub(super) fn workload(number: u32, services: u32, round: u32) -> Resource {
    let of = number % services.max(1);
    let namespace = format!("namespace-{}", of % 500);
    let name = format!("service-{of}-7d9c5f6b8-{number:05x}");
    let uid = format!("cluster1//Pod/{namespace}/{name}");
    let ports = wds::PortList { ports: vec![wds::Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    let body = wds::Workload {
        uid: uid.clone(),
        name,
        addresses: vec![pod_ip(number, round).octets().to_vec().into()],
        network: "network1".into(),
        tunnel_protocol: 1,
        service_account: format!("account-{of}"),
        node: format!("node-{}", number % 1000),
        canonical_name: format!("service-{of}"),
        canonical_revision: "v1".into(),
        workload_type: 2,
        workload_name: format!("service-{of}"),
        authorization_policies: vec!["istio-system/istio_converted_static_strict".into()],
        cluster_id: "cluster1".into(),
        services: [(format!("{namespace}/{}", hostname(of)), ports)].into(),
        locality: Some(wds::Locality { region: "r1".into(), zone: format!("z{}", number % 3), subzone: String::new() }),
        capacity: Some(UInt32Value { value: 1 }),
        namespace,
        ..Default::default()
    };
    resource(uid, AddressType::Workload(body), round)
}

fn rss() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/status").map_err(context("/proc/self/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().map_err(context("VmRSS"))?;
    Ok(kib * 1024.0)
}

fn read(folder: &Path, name: &str) -> Result<DeltaDiscoveryResponse> {
    let path = folder.join(name);
    let bytes = fs::read(&path).map_err(context(path.display()))?;
    DeltaDiscoveryResponse::decode(bytes::Bytes::from(bytes)).map_err(context(path.display()))
}

fn apply(session: &mut Session, store: &ModelStore, response: DeltaDiscoveryResponse) -> Result<usize> {
    let received = session.receive(response);
    match received.refused.first() {
        Some((name, reason)) => Err(format!("{name}: {reason}").into()),
        None => Ok(store.apply(SourceId::CONTROL_PLANE, received.update).changed),
    }
}

/// Looks things up until told to stop; answers how long each look took.
fn reader(store: Arc<ModelStore>, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut took = Vec::with_capacity(1 << 20);
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let begin = Instant::now();
        let model = store.load();
        let found = model.service_by_vip("network1", IpAddr::V4(vip(number % 10_000)), "namespace-1");
        let members = found.map_or(0, |service| model.endpoints(service).len());
        let pod = model.workload_by_ip("network1", IpAddr::V4(pod_ip(number % 100_000, 0)));
        std::hint::black_box((members, pod.is_some()));
        drop(model);
        took.push(begin.elapsed());
        std::thread::sleep(PAUSE);
    }
    took
}

fn watched(store: &Arc<ModelStore>, work: impl FnOnce() -> Result<()>) -> Result<Vec<Duration>> {
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        move || reader(store, stop)
    });
    let done = work();
    stop.store(true, Ordering::Relaxed);
    let mut took = thread.join().map_err(|_| "the reader panicked")?;
    done?;
    took.sort_unstable();
    Ok(took)
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
    let at = ((sorted.len() as f64 - 1.0) * share).max(0.0) as usize;
    sorted.get(at).copied().unwrap_or_default()
}

fn percentiles(sorted: &[Duration]) -> String {
    let [median, p99, worst] = [0.5, 0.99, 1.0].map(|share| percentile(sorted, share));
    format!("{} lookups: median {median:.1?}, p99 {p99:.1?}, longest {worst:.1?}", sorted.len())
}

/// The measuring half.
///
/// # Errors
/// What could not be read.
pub fn measure(folder: &Path, rounds: u32) -> Result<()> {
    // As the daemon does, which keeps freed memory longer than the allocator would.
    causeway::redirect::keep_buffers();
    let node = "causeway: {node: node-1, cluster: cluster1, network: network1, identity: {caDirectory: x}}\n";
    let model = file::parse(node, Path::new("model.yaml")).map_err(context("model"))?;
    let store = Arc::new(ModelStore::new(model));
    let mut session = Session::default();
    let before = rss()?;
    let begin = Instant::now();
    let all = read(folder, "all")?;
    let decoded = begin.elapsed();
    apply(&mut session, &store, all)?;
    apply(&mut session, &store, read(folder, "policies")?)?;
    println!("first sync: decoded in {decoded:.0?}, in force after {:.0?}", begin.elapsed());
    causeway::redirect::return_memory();
    println!("memory: {:.0} MiB more than before", (rss()? - before) / MIB);
    let idle = watched(&store, || {
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    println!("while nothing changes: {}", percentiles(&idle));
    for round in 1..=rounds {
        let response = read(folder, &format!("change-{round}"))?;
        let (mut took, mut changed) = (Duration::ZERO, 0);
        let during = watched(&store, || {
            let begin = Instant::now();
            changed = apply(&mut session, &store, response)?;
            took = begin.elapsed();
            Ok(())
        })?;
        println!("round {round}: {changed} endpoints in force after {took:.0?}; meanwhile {}", percentiles(&during));
        store.clean();
    }
    causeway::redirect::return_memory();
    println!("memory after the rounds: {:.0} MiB more than before", (rss()? - before) / MIB);
    // The same one by one, as a rolling restart arrives.
    let singles = read(folder, "change-1")?;
    let count = singles.resources.len();
    let mut took = Duration::ZERO;
    let during = watched(&store, || {
        let begin = Instant::now();
        for resource in singles.resources {
            apply(&mut session, &store, response(ADDRESS_TYPE, vec![resource]))?;
        }
        took = begin.elapsed();
        Ok(())
    })?;
    println!("{count} pushes of one endpoint each: {took:.0?}; meanwhile {}", percentiles(&during));
    store.clean();
    causeway::redirect::return_memory();
    println!("memory at the end: {:.0} MiB more than before", (rss()? - before) / MIB);
    Ok(())
}
