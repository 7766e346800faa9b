//! Pods whose connections wait until they are enrolled, or known not to be enrolled.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::zeroed;
use std::path::Path;
use std::time::Instant;

use aya::maps::{HashMap, Map, MapData, MapError};
use causeway_ebpf::decide::hold::UNTIL_ENROLMENT;

use super::error::LoadError;
use super::maps::in_map;
use super::system::check;

/// Says which pods wait, by the id of their cgroup: that is the inode of its folder. It can be used beside the
/// [`Redirector`](super::Redirector), whose enrolments end the waiting.
pub struct Holds(HashMap<MapData, u64, u64>);

impl std::fmt::Debug for Holds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Holds").finish_non_exhaustive()
    }
}

impl Holds {
    pub(super) fn open(pin: &Path) -> Result<Self, LoadError> {
        let map = MapData::from_pin(pin).map_err(in_map("HELD"))?;
        HashMap::try_from(Map::HashMap(map)).map(Self).map_err(in_map("HELD"))
    }

    /// The cgroups whose pods wait for their enrolment, also those an earlier daemon has named.
    #[must_use]
    pub fn get(&self) -> BTreeSet<u64> {
        self.named(true)
    }

    fn named(&self, enrolment: bool) -> BTreeSet<u64> {
        let all = self.0.iter().filter_map(Result::ok);
        all.filter(|(_, until)| (*until == UNTIL_ENROLMENT) == enrolment).map(|(id, _)| id).collect()
    }

    /// From now on connections that tasks below these cgroups open wait until their pod is enrolled, and no others, except those
    /// of unknown pods.
    ///
    /// # Errors
    /// The kernel's; new ones are named before others are taken away.
    pub fn set(&mut self, cgroups: &BTreeSet<u64>) -> io::Result<()> {
        let before = self.get();
        for id in cgroups.difference(&before) {
            self.0.insert(*id, UNTIL_ENROLMENT, 0).map_err(failed)?;
        }
        for id in before.difference(cgroups) {
            self.0.remove(id).map_err(failed)?;
        }
        Ok(())
    }

    /// From now on connections that tasks below these cgroups open wait until the time that is given with each, and no others,
    /// except those of pods that wait for their enrolment: these are left as they are. Nothing of them is lost where the pod
    /// turns out not to be of the mesh; where it does, those that wait fail.
    ///
    /// # Errors
    /// The kernel's; new ones are named before others are taken away.
    pub fn set_unknown(&mut self, cgroups: &BTreeMap<u64, Instant>) -> io::Result<()> {
        let enrolment = self.get();
        let (clock, now) = (monotonic()?, Instant::now());
        for (id, until) in cgroups.iter().filter(|(id, _)| !enrolment.contains(id)) {
            let left = u64::try_from(until.saturating_duration_since(now).as_nanos()).unwrap_or(u64::MAX);
            self.0.insert(*id, clock.saturating_add(left), 0).map_err(failed)?;
        }
        for id in self.named(false).iter().filter(|id| !cgroups.contains_key(id)) {
            self.0.remove(id).map_err(failed)?;
        }
        Ok(())
    }
}

/// The clock that the kernel programs read, in nanoseconds.
fn monotonic() -> io::Result<u64> {
    // SAFETY: two integers; any bytes are a value.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: the call writes one timespec to where it is told.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) })?;
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    let (seconds, nanoseconds) = (seconds.map_err(io::Error::other)?, nanoseconds.map_err(io::Error::other)?);
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

fn failed(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
