//! Two daemons of one instance, one after the other without a gap: the earlier one makes way and serves what it has until it is
//! told to end; the later one takes over maps, links and, pod by pod, new connections.

use super::redirector::Redirector;

impl Redirector {
    /// Whether this daemon has taken the place of one that still runs.
    #[must_use]
    pub fn succeeds(&self) -> bool {
        self.pins.succeeds
    }

    /// Whether another daemon waits to take this one's place.
    #[must_use]
    pub fn is_asked_to_make_way(&self) -> bool {
        self.pins.is_asked()
    }

    /// Leaves maps and links to the other. Nothing but sockets of enrolled pods may be asked of this one from now on.
    pub fn make_way(&mut self) {
        self.pins.make_way();
    }

    /// Whether the other has ended, so that nobody serves new connections.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.pins.is_vacant()
    }

    /// The end of a daemon that has made way: connections of its cgroup are not told from others any more.
    pub fn leave(mut self) {
        // Should it stay, it names a cgroup that is gone, and ids are not given twice.
        let _ = self.maps.engines.remove(&self.engine);
    }
}
