//! Pods whose connections wait until they are enrolled.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};

use super::error::LoadError;
use super::maps::in_map;

/// Says which pods wait, by the id of their cgroup: that is the inode of its folder. It can be used beside the
/// [`Redirector`](super::Redirector), whose enrolments end the waiting.
pub struct Holds(HashMap<MapData, u64, u32>);

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

    /// The cgroups whose pods wait, also those an earlier daemon has named.
    #[must_use]
    pub fn get(&self) -> BTreeSet<u64> {
        self.0.keys().filter_map(Result::ok).collect()
    }

    /// From now on connections that tasks below these cgroups open wait until their pod is enrolled, and no others.
    ///
    /// # Errors
    /// The kernel's; new ones are named before others are taken away.
    pub fn set(&mut self, cgroups: &BTreeSet<u64>) -> io::Result<()> {
        let failed = |error| match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        };
        let before = self.get();
        for id in cgroups.difference(&before) {
            self.0.insert(*id, 1, 0).map_err(failed)?;
        }
        for id in before.difference(cgroups) {
            self.0.remove(id).map_err(failed)?;
        }
        Ok(())
    }
}
