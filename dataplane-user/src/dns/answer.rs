//! The records for a question, or that it is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::lookup::{Found, Target, find, name_of_address, service_addresses};
use super::names::{is_below, without};
use super::{MESH_DOMAIN, Reserved};
use crate::state::{Model, PodName, Service, Workload};

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports.
    Srv,
    /// The name of an address.
    Ptr,
    /// How to reach a service (types 64 and 65), which may hold addresses that lead past the mesh.
    Binding,
    /// Anything else.
    Other,
}

/// One record's data; names are absolute, without the trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Port and host.
    Srv(u16, String),
    /// A name.
    Ptr(String),
}

impl From<IpAddr> for Data {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::A(v4),
            IpAddr::V6(v6) => Self::Aaaa(v6),
        }
    }
}

/// An answer to a question that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name the question's stands for, if the records are that one's.
    pub alias: Option<String>,
    /// The records; none means that the name exists and has no such record.
    pub data: Vec<Data>,
    /// Addresses of hosts in the records.
    pub additional: Vec<(String, IpAddr)>,
    /// The zone in whose name an absence is told.
    pub zone: String,
}

/// Who asks, and of what.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The mesh.
    pub model: &'a Model,
    /// The workload that asks.
    pub client: &'a Workload,
    /// Addresses of pods in other networks.
    pub reserved: &'a Reserved,
    /// The time.
    pub now: Instant,
}

impl View<'_> {
    /// The answer to a question for `asked` (in lower case, no trailing dot); `None` if the question is not ours. Addresses
    /// are in an order drawn from `random`.
    pub fn answer(&self, asked: &str, kind: Kind, random: &mut impl FnMut() -> u64) -> Option<Answer> {
        let mut answer = match kind {
            Kind::Ptr => self.reverse(asked)?,
            _ if asked.starts_with('_') => self.ports_by_number(asked, kind)?,
            _ => {
                let found = find(self.model, self.client, asked)?;
                let mut answer = self.empty(&found);
                match kind {
                    Kind::A | Kind::Aaaa => {
                        answer.data.extend(self.addresses(&found.target, kind == Kind::A).into_iter().map(Data::from));
                    }
                    Kind::Srv if self.is_inside(&found.name) => self.ports(&found, &mut answer),
                    // Types that are neither addresses nor lead to some are somebody else's for names outside the mesh's
                    // domains: mail for a host whose connections we carry goes where it always went.
                    Kind::Other | Kind::Srv if !self.is_inside(&found.name) => return None,
                    _ => {}
                }
                answer
            }
        };
        shuffle(&mut answer.data, random);
        Some(answer)
    }

    fn empty(&self, found: &Found) -> Answer {
        let alias = (found.stripped && !found.wildcard).then(|| found.name.clone());
        let domain = &*self.model.node.cluster_domain;
        let zone = [domain, MESH_DOMAIN].into_iter().find(|zone| is_below(&found.name, zone));
        let zone = zone.map_or_else(|| found.name.clone(), str::to_owned);
        Answer { alias, data: Vec::new(), additional: Vec::new(), zone }
    }

    /// Whether all types of a name are ours: below the cluster's domain or the mesh's.
    fn is_inside(&self, name: &str) -> bool {
        is_below(name, &self.model.node.cluster_domain) || is_below(name, MESH_DOMAIN)
    }

    fn addresses(&self, target: &Target, v4: bool) -> Vec<IpAddr> {
        match target {
            Target::Service(service) => service_addresses(self.model, self.client, service, v4),
            Target::Pod(workload) => {
                let ips = workload.iter().flat_map(|workload| workload.ips.iter().copied());
                ips.filter(|ip| ip.is_ipv4() == v4).collect()
            }
            Target::RemotePod { .. } if !v4 => Vec::new(),
            Target::RemotePod { service, pod, networks } => {
                let names = networks.iter().map(|network| PodName {
                    service: service.key.clone(),
                    pod: pod.as_str().into(),
                    network: network.clone(),
                });
                let addresses = names.filter_map(|name| self.reserved.address_of(&name, self.now)).map(IpAddr::V4);
                // An address that the mesh itself uses would lead to whatever has it.
                addresses.filter(|ip| self.model.service_with_vip(&self.client.network, *ip).is_none()).collect()
            }
        }
    }

    /// Every port of a service at its name, or of a headless one at each of its pods.
    fn ports(&self, found: &Found, answer: &mut Answer) {
        let Target::Service(service) = &found.target else { return };
        for (port, _) in service.ports.iter() {
            self.port(service, &found.name, *port, answer);
        }
    }

    fn port(&self, service: &Service, name: &str, port: u16, answer: &mut Answer) {
        if !service.vips.is_empty() {
            answer.data.push(Data::Srv(port, name.to_owned()));
            for v4 in [true, false] {
                for ip in service_addresses(self.model, self.client, service, v4) {
                    add(&mut answer.additional, (name.to_owned(), ip));
                }
            }
            return;
        }
        let here = self.model.endpoints(service).iter();
        for endpoint in here.filter(|endpoint| endpoint.workload.network == self.client.network) {
            let target = match endpoint.ports.get(&port).or_else(|| service.ports.get(&port)) {
                Some(0) | None => port,
                Some(target) => *target,
            };
            let host = format!("{}.{name}", endpoint.workload.name);
            answer.data.push(Data::Srv(target, host.clone()));
            for ip in endpoint.workload.ips.iter().filter(|ip| service.ip_families.accepts(**ip)) {
                add(&mut answer.additional, (host.clone(), *ip));
            }
        }
    }

    /// `_8080._tcp.<service>`. The mesh model has no names of ports, so a question by name is left to the cluster's own DNS.
    fn ports_by_number(&self, asked: &str, kind: Kind) -> Option<Answer> {
        let (port, rest) = asked.split_once('.')?;
        let port: u16 = port.strip_prefix('_')?.parse().ok()?;
        let found = find(self.model, self.client, rest.strip_prefix("_tcp.")?)?;
        let Target::Service(service) = &found.target else { return None };
        if kind != Kind::Srv || found.stripped || !self.is_inside(&found.name) || !service.ports.contains_key(&port) {
            return None;
        }
        let mut answer = self.empty(&found);
        self.port(service, &found.name, port, &mut answer);
        Some(answer)
    }

    /// The name of an address of ours.
    fn reverse(&self, asked: &str) -> Option<Answer> {
        let ip = reverse_address(asked)?;
        let name = match self.reserved.name_of(ip) {
            Some(PodName { service, pod, .. }) => format!("{pod}.{}", service.split_once('/')?.1),
            None => name_of_address(self.model, self.client, ip)?.to_string(),
        };
        Some(Answer { alias: None, data: vec![Data::Ptr(name)], additional: Vec::new(), zone: asked.to_owned() })
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

/// The address in a name such as `4.3.2.1.in-addr.arpa`, or in one of 32 nibbles below `ip6.arpa` (RFC 1035 3.5, RFC 3596 2.5).
#[must_use]
pub fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = without(name, "in-addr.arpa") {
        let mut bytes = [0; 4];
        let mut labels = rest.split('.');
        for byte in bytes.iter_mut().rev() {
            *byte = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| IpAddr::from(bytes));
    }
    let rest = without(name, "ip6.arpa")?;
    let mut value: u128 = 0;
    let mut count = 0;
    for label in rest.split('.').collect::<Vec<_>>().into_iter().rev() {
        let digit = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
        value = value.checked_mul(16)? | digit;
        count += 1;
    }
    (count == 32).then(|| IpAddr::from(value.to_be_bytes()))
}

/// Fisher and Yates.
fn shuffle<T>(list: &mut [T], random: &mut impl FnMut() -> u64) {
    for index in (1..list.len()).rev() {
        let other = (random() % (index as u64 + 1)) as usize;
        list.swap(index, other);
    }
}
