//! Checks across objects: whatever is named must be there.

use super::locate::Place;
use super::{Problems, convert_node, raw};
use crate::state::{Destination, Model, NodePortTarget, Workload, normal_host};

/// Reports references that lead nowhere.
pub(super) fn references(file: &raw::File, model: &Model, problems: &mut Problems) {
    if told_by_others(model) {
        node_references(file, model, problems);
        return;
    }
    for (index, raw) in file.workloads.iter().enumerate() {
        let place = Place::root().key("workloads").index(index);
        if let Some(workload) = model.workload(&raw.uid) {
            workload_references(workload, raw, &place, model, problems);
        }
    }
    for (index, raw) in file.services.iter().enumerate() {
        let place = Place::root().key("services").index(index);
        let key = format!("{}/{}", raw.namespace, normal_host(&raw.hostname));
        let Some(service) = model.service_by_key(&key) else {
            continue;
        };
        if let Some(waypoint) = &service.waypoint {
            resolvable(&waypoint.destination, "waypoint", &place.key("waypoint"), model, problems);
        }
        for (index, entry) in service.weighted_waypoints.iter().enumerate() {
            let place = place.key("weightedWaypoints").index(index).key("destination");
            resolvable(&entry.waypoint.destination, "waypoint", &place, model, problems);
        }
    }
    node_references(file, model, problems);
}

fn workload_references(
    workload: &Workload,
    raw: &raw::Workload,
    place: &Place,
    model: &Model,
    problems: &mut Problems,
) {
    if let Some(waypoint) = &workload.waypoint {
        resolvable(&waypoint.destination, "waypoint", &place.key("waypoint"), model, problems);
    }
    let foreign = workload.network != model.node.network;
    if let Some(gateway) = &workload.network_gateway
        && foreign
        && model.gateways(&workload.network).is_empty()
    {
        resolvable(&gateway.destination, "gateway", &place.key("networkGateway"), model, problems);
    }
    for key in raw.services.keys() {
        if !knows_service(model, key) {
            problems.add(
                &place.key("services").key(key),
                format!("no service {key:?} in this file"),
                "add it under services, or correct namespace and hostname",
            );
        }
    }
    for (index, key) in workload.policies.iter().enumerate() {
        // istiod itself leaves references of this form without a policy.
        let dangling_by_design = key.contains("/converted_peer_authentication_");
        if model.policy(key).is_none() && !dangling_by_design {
            problems.add(
                &place.key("authorizationPolicies").index(index),
                format!("no policy {key:?} in this file"),
                "add it under policies, or correct it: the form is namespace/name",
            );
        }
    }
}

fn resolvable(destination: &Destination, what: &str, place: &Place, model: &Model, problems: &mut Problems) {
    let found = match destination {
        Destination::Address { network, ip } => {
            model.workload_by_ip(network, *ip).is_some() || model.service_with_vip(network, *ip).is_some()
        }
        Destination::Hostname { namespace, hostname } => {
            model.service(namespace, hostname).is_some() || model.workload_by_hostname(hostname).is_some()
        }
    };
    if !found {
        problems.add(
            &place.key("destination"),
            format!("no workload or service in this file is {destination}"),
            format!("describe the {what} under workloads or services: its identity must be known"),
        );
    }
}

fn node_references(file: &raw::File, model: &Model, problems: &mut Problems) {
    let causeway = Place::root().key("causeway");
    for (index, enrolment) in model.node.enrol.iter().enumerate() {
        let place = causeway.key("enrol").index(index).key("workload");
        let Some(workload) = model.workload(&enrolment.workload) else {
            if told_by_others(model) {
                continue;
            }
            problems.add(
                &place,
                format!("no workload has the uid {:?}", enrolment.workload),
                "add it under workloads, or correct the uid",
            );
            continue;
        };
        if workload.node != model.node.node {
            problems.add(
                &place,
                format!("the workload is on node {:?}, this is {:?}", workload.node, model.node.node),
                "enrol workloads of this node only, or correct node",
            );
        }
        if workload.network != model.node.network {
            problems.add(
                &place,
                format!("the workload is in network {:?}, this node in {:?}", workload.network, model.node.network),
                "correct network of the workload or of causeway",
            );
        }
        if workload.ips.is_empty() {
            problems.add(&place, "the workload has no address", "fill its workloadIps");
        }
        if &*workload.trust_domain != model.node.trust_domain() {
            problems.add(
                &place,
                format!(
                    "the workload is of trust domain {}, this node of {}",
                    workload.trust_domain,
                    model.node.trust_domain()
                ),
                "correct trustDomain of the workload or of causeway",
            );
        }
    }
    node_port_references(model, &causeway, problems);
    for (index, text) in file.causeway.exports.iter().enumerate() {
        if text != "*" && text != convert_node::SHARED && !told_by_others(model) && !knows_service(model, text) {
            problems.add(
                &causeway.key("exports").index(index),
                format!("no service {text:?} in this file"),
                "add it under services, or correct namespace and hostname",
            );
        }
    }
}

fn node_port_references(model: &Model, causeway: &Place, problems: &mut Problems) {
    // A control plane may publish what the file names and does not hold.
    if told_by_others(model) {
        return;
    }
    for (index, entry) in model.node.node_ports.iter().enumerate() {
        let NodePortTarget::Service { key, port } = &entry.target else { continue };
        let place = causeway.key("nodePorts").index(index);
        match model.service_by_key(key) {
            None => problems.add(
                &place.key("service"),
                format!("no service {key:?} in this file"),
                "add it under services, or correct namespace and hostname",
            ),
            Some(service) if !service.ports.contains_key(port) => problems.add(
                &place.key("port"),
                format!("{key} has no port {port}"),
                "write one of the service's ports, or add it there",
            ),
            Some(_) => {}
        }
    }
}

/// Whether a control plane may publish what the file names and does not hold.
fn told_by_others(model: &Model) -> bool {
    model.node.control_plane.as_ref().is_some_and(|plane| !plane.address.is_empty())
}

fn knows_service(model: &Model, key: &str) -> bool {
    key.split_once('/').is_some_and(|(namespace, host)| model.service(namespace, &normal_host(host)).is_some())
}
