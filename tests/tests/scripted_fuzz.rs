//! Whatever a server sends, reading it ends, does not panic, and leaves a model that answers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::time::{Duration, Instant};

use causeway::istio::xds_proto::DeltaDiscoveryResponse;
use causeway::istio::xds_session::{Session, TYPES};
use causeway::state::{ModelStore, SourceId, file};
use prost::Message as _;
use testkit::control_plane::recorded;
use testkit::fuzz::{damage, run};

#[test]
fn random_bytes_and_damaged_recordings_never_panic_or_stall() {
    let node = "causeway: {node: n1, cluster: cluster1, network: cluster1, identity: {caDirectory: x}}\n";
    let store = ModelStore::new(file::parse(node, Path::new("model.yaml")).unwrap());
    let mut session = Session::default();
    let recordings: Vec<DeltaDiscoveryResponse> = ["cluster1", "cluster2"]
        .iter()
        .flat_map(|name| recorded(name).unwrap())
        .map(|answer| answer.response)
        .collect();
    let (mut rounds, mut refused, mut longest) = (0_u64, 0, Duration::ZERO);
    run("WDS", &[], |_, random| {
        let begin = Instant::now();
        let response = match random.below(4) {
            0 => {
                // The whole message is damaged.
                let mut bytes = recordings[random.below(recordings.len())].encode_to_vec();
                damage(&mut bytes, random);
                DeltaDiscoveryResponse::decode(&bytes[..]).unwrap_or_default()
            }
            1 => {
                let bytes: Vec<u8> =
                    (0..random.below(300)).map(|_| u8::try_from(random.number() & 0xff).unwrap()).collect();
                let mut response = recordings[random.below(recordings.len())].clone();
                response.type_url = TYPES[random.below(2)].to_owned();
                for resource in &mut response.resources {
                    resource.resource.get_or_insert_default().value = bytes.clone().into();
                }
                response
            }
            _ => {
                let mut response = recordings[random.below(recordings.len())].clone();
                for resource in &mut response.resources {
                    if random.below(3) == 0 {
                        let body = resource.resource.get_or_insert_default();
                        let mut bytes = body.value.to_vec();
                        damage(&mut bytes, random);
                        body.value = bytes.into();
                    }
                }
                let names = response.resources.iter().map(|resource| resource.name.clone());
                response.removed_resources = names.filter(|name| name.len() % 7 == random.below(7)).collect();
                response
            }
        };
        let received = session.receive(response);
        refused += received.refused.len();
        assert_eq!(received.answer.error_detail.is_some(), !received.refused.is_empty());
        store.apply(SourceId::CONTROL_PLANE, received.update);
        let model = store.load();
        for workload in model.workloads() {
            assert_eq!(model.policies_for(workload).filter(|policy| policy.key.is_empty()).count(), 0);
            for ip in workload.ips.iter().filter(|_| !workload.host_network) {
                assert!(model.workload_by_ip(&workload.network, *ip).is_some(), "{}", workload.uid);
            }
        }
        for service in model.services() {
            assert!(model.endpoints(service).len() <= model.members(service).len());
            assert!(model.services_by_host(&service.hostname).contains(service));
        }
        longest = longest.max(begin.elapsed());
        rounds += 1;
    });
    assert!(rounds > 10 && refused > 0, "{rounds} rounds refused {refused}");
    // And a clean recording makes all good again.
    for response in recordings {
        assert_eq!(session.receive(response).refused, Vec::new());
    }
    println!("{rounds} messages, {refused} resources refused, longest {longest:?}");
}
