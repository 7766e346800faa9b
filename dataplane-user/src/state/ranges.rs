//! Virtual address ranges.

use std::net::IpAddr;

use super::several::Several;
use super::shards::Shards;
use super::{Cidr, Service};

/// Services by range. Looks once per prefix length that is in use: at most 33 for IPv4 and 129 for IPv6, usually a handful,
/// however many ranges there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges {
    /// In use, each with its number of ranges, the longest first.
    lengths: Vec<(u8, usize)>,
    services: Shards<Cidr, Several<Service>>,
}

impl Ranges {
    /// All services whose range holds the address: longer prefixes first, by key within one range.
    pub(super) fn containing(&self, ip: IpAddr) -> impl Iterator<Item = (Cidr, &std::sync::Arc<Service>)> {
        self.lengths
            .iter()
            .filter_map(move |(length, _)| Cidr::new(ip, *length))
            .filter_map(|range| Some((range, self.services.get(&range)?)))
            .flat_map(|(range, several)| several.as_slice().iter().map(move |service| (range, service)))
    }

    pub(super) fn insert(&mut self, range: Cidr, service: &std::sync::Arc<Service>) {
        let present = self.services.get(&range);
        let is_new = present.is_none();
        let several =
            Several::with(present, service.clone(), |known| known.key == service.key, |a, b| a.key.cmp(&b.key));
        self.services.insert(range, several);
        if is_new {
            match self.lengths.iter_mut().find(|(length, _)| *length == range.prefix()) {
                Some((_, count)) => *count += 1,
                None => {
                    self.lengths.push((range.prefix(), 1));
                    self.lengths.sort_by(|a, b| b.cmp(a));
                }
            }
        }
    }

    pub(super) fn remove(&mut self, range: Cidr, key: &str) {
        let Some(present) = self.services.get(&range) else {
            return;
        };
        match present.without(|known| *known.key == *key) {
            Some(rest) => {
                self.services.insert(range, rest);
            }
            None => {
                self.services.remove(&range);
                if let Some((_, count)) = self.lengths.iter_mut().find(|(length, _)| *length == range.prefix()) {
                    *count -= 1;
                }
                self.lengths.retain(|(_, count)| *count > 0);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}
