//! Addresses that stand for pods of other networks.
//!
//! A pod of a headless service in another network has no address that means anything here. A client that asks for it by name
//! gets one of 240.254.0.0/16, and the connection to that address is tunnelled to the pod by its name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::state::PodName;

/// First two bytes of every address given out.
pub const RESERVED: [u8; 2] = [240, 254];

/// Whether an address is one of those that may be given out. What it stands for is a question of its own.
#[must_use]
pub fn is_reserved(ip: IpAddr) -> bool {
    matches!(ip.to_canonical(), IpAddr::V4(ip) if ip.octets().starts_with(&RESERVED))
}

/// Most addresses in use at once.
const MOST: usize = 16_384;
/// Most addresses of one service in one network: a client that invents names cannot take those of other services.
const MOST_PER_SERVICE: usize = 1_024;
/// How long an address nobody asked for stays with its name: longer than any application is known to keep one.
const KEEP: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
struct Entry {
    name: PodName,
    used: Instant,
}

#[derive(Debug, Default)]
struct Table {
    by_number: HashMap<u16, Entry>,
    by_name: HashMap<PodName, u16>,
}

/// Gives out addresses for names and tells the name of an address. Shared by all workers.
#[derive(Debug, Default)]
pub struct Reserved(Mutex<Table>);

impl Reserved {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a pod. The same name gets the same address as long as it is in use, and nearly always after a restart:
    /// applications keep addresses longer than they should. `None` when there is none left.
    pub fn address_of(&self, name: &PodName, now: Instant) -> Option<Ipv4Addr> {
        let mut table = self.table();
        if let Some(number) = table.by_name.get(name).copied() {
            if let Some(entry) = table.by_number.get_mut(&number) {
                entry.used = now;
            }
            return Some(address(number));
        }
        let same = |known: &PodName| known.service == name.service && known.network == name.network;
        if table.by_number.len() >= MOST {
            table.forget_oldest(|_| true, now)?;
        } else if table.by_number.len() >= MOST_PER_SERVICE
            && table.by_name.keys().filter(|known| same(known)).count() >= MOST_PER_SERVICE
        {
            table.forget_oldest(same, now)?;
        }
        let first = preferred(name);
        let number = (0..=u16::MAX)
            .map(|step| first.wrapping_add(step))
            .find(|number| *number != 0 && *number != u16::MAX && !table.by_number.contains_key(number))?;
        table.by_number.insert(number, Entry { name: name.clone(), used: now });
        table.by_name.insert(name.clone(), number);
        Some(address(number))
    }

    /// The pod behind an address that was given out; the address counts as in use.
    pub fn name_of(&self, ip: IpAddr) -> Option<PodName> {
        let IpAddr::V4(ip) = ip.to_canonical() else { return None };
        if !is_reserved(ip.into()) {
            return None;
        }
        let [_, _, high, low] = ip.octets();
        let mut table = self.table();
        let entry = table.by_number.get_mut(&u16::from_be_bytes([high, low]))?;
        entry.used = Instant::now();
        Some(entry.name.clone())
    }

    /// How many addresses are given out.
    pub fn in_use(&self) -> usize {
        self.table().by_number.len()
    }
}

impl Table {
    /// Makes room among the names that match; `None` if all of them are still in use.
    fn forget_oldest(&mut self, matches: impl Fn(&PodName) -> bool, now: Instant) -> Option<()> {
        let candidates = self.by_number.iter().filter(|(_, entry)| matches(&entry.name));
        let (number, used) = candidates.map(|(number, entry)| (*number, entry.used)).min_by_key(|(_, used)| *used)?;
        if now.saturating_duration_since(used) < KEEP {
            return None;
        }
        let entry = self.by_number.remove(&number)?;
        self.by_name.remove(&entry.name);
        Some(())
    }
}

fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(RESERVED[0], RESERVED[1], high, low)
}

/// Where the search for a free address begins: FNV-1a over the name, which no release of a library changes.
fn preferred(name: &PodName) -> u16 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in [&name.network, &name.service, &name.pod] {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    (hash ^ hash >> 16 ^ hash >> 32 ^ hash >> 48) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn name(service: &str, pod: &str) -> PodName {
        PodName { service: service.into(), pod: pod.into(), network: "net2".into() }
    }

    #[test]
    fn a_name_keeps_its_address_and_an_address_its_name() {
        let reserved = Reserved::default();
        let now = Instant::now();
        let first = reserved.address_of(&name("ns/db", "db-0"), now).unwrap();
        let second = reserved.address_of(&name("ns/db", "db-1"), now).unwrap();
        assert_ne!(first, second);
        assert_eq!(first.octets()[..2], RESERVED);
        assert_eq!(reserved.address_of(&name("ns/db", "db-0"), now), Some(first));
        assert_eq!(reserved.name_of(first.into()), Some(name("ns/db", "db-0")));
        assert_eq!(reserved.name_of(first.to_ipv6_mapped().into()), Some(name("ns/db", "db-0")));
        for other in ["240.254.255.254", "240.240.0.1", "10.0.0.1", "::1"] {
            assert_eq!(reserved.name_of(other.parse().unwrap()), None, "{other}");
        }
        let restarted = Reserved::default();
        assert_eq!(restarted.address_of(&name("ns/db", "db-1"), now), Some(second), "the same after a restart");
    }

    #[test]
    fn one_service_cannot_take_the_addresses_of_others_and_idle_ones_give_way() {
        let reserved = Reserved::default();
        let now = Instant::now();
        for number in 0..MOST_PER_SERVICE {
            assert!(reserved.address_of(&name("ns/db", &format!("x{number}")), now).is_some());
        }
        assert_eq!(reserved.address_of(&name("ns/db", "one-more"), now), None);
        let other = reserved.address_of(&name("ns/other", "o-0"), now).unwrap();
        let later = now + KEEP + Duration::from_secs(1);
        assert!(reserved.address_of(&name("ns/db", "one-more"), later).is_some());
        assert_eq!(reserved.in_use(), MOST_PER_SERVICE + 1);
        assert_eq!(reserved.name_of(other.into()), Some(name("ns/other", "o-0")), "another service's stays");
    }
}
