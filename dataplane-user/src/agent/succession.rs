//! A daemon that takes the place of another one of its node, and the other: new connections are never without one of them.

use std::io;
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::node::Node;
use crate::redirect::Redirector;

/// How long nobody may have the place after this daemon has made way: its successor tries to get it many times a second.
const VACANT: Duration = Duration::from_secs(5);
/// The longest a daemon that takes over waits for the control plane: an earlier one serves what it knows until then.
const COMING: Duration = Duration::from_secs(20);

/// Where this daemon stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// An earlier one has made way and serves the pods until this one can.
    Coming,
    /// It enrols and serves pods.
    #[default]
    Held,
    /// A later one does, and this one serves what it has.
    Left,
}

impl Node {
    fn redirector(&self) -> Option<&Redirector> {
        self.kernel.as_ref().map(|kernel| &kernel.enrolments.redirector)
    }

    /// Notices at the start whether an earlier daemon has made way.
    pub(super) fn take_place(&mut self) {
        if self.redirector().is_some_and(|redirector| redirector.succeeds()) {
            info!("an earlier daemon has made way; it serves its pods until the control plane has told what they may");
            (self.place, self.since) = (Place::Coming, Instant::now());
        }
    }

    /// Does what there is to do about the place; true if another daemon has it, which leaves nothing else to be done.
    ///
    /// # Errors
    /// This daemon has made way for one that has ended. Started again it takes its place back.
    pub(super) fn keep_place(&mut self) -> io::Result<bool> {
        match self.place {
            Place::Coming if self.shared.model.load().synced || self.since.elapsed() >= COMING => {
                self.place = Place::Held;
                self.take_pods();
                self.enrol();
                info!("pods are served by this daemon now");
            }
            Place::Held if self.redirector().is_some_and(|redirector| redirector.is_asked_to_make_way()) => {
                info!("another daemon takes over; what is open here goes on until this one is told to end");
                // Its own word about pods must not cross the other's.
                self.pods = None;
                if let Some(kernel) = &mut self.kernel {
                    kernel.enrolments.proving = None;
                    kernel.enrolments.redirector.make_way();
                }
                (self.place, self.since) = (Place::Left, Instant::now());
            }
            Place::Left
                if self.since.elapsed() >= VACANT
                    && self.redirector().is_some_and(|redirector| redirector.is_deserted()) =>
            {
                error!("the daemon that has taken over has ended");
                return Err(io::Error::other("its place is vacant: this daemon ends too, to be started again"));
            }
            _ => {}
        }
        if let Some(kernel) = self.kernel.as_mut().filter(|_| self.place == Place::Left) {
            kernel.enrolments.redirector.require_helper()?;
        }
        Ok(self.place != Place::Held)
    }
}
