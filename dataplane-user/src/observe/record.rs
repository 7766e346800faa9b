//! What there is to say about one connection: gathered while it is made, handed over when it ends.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::traffic::Account;
use crate::{
    hbone::{ConnError, Leg, LegTimes, Span},
    identity::SpiffeId,
    state::{Service, Workload},
    tunnel::ends::{self, CopyError},
};

/// Which way a connection went, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Opened by an application of an enrolled pod.
    Outbound,
    /// Towards an application of an enrolled pod.
    Inbound,
    /// Through the gateway role.
    Gateway,
}

impl Direction {
    /// As it stands in logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Gateway => "gateway",
        }
    }
}

/// One side of a connection.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// The address of the socket.
    pub address: Option<SocketAddr>,
    /// The workload, where the model knows it.
    pub workload: Option<Arc<Workload>>,
    /// The identity it proved, or that we present for it.
    pub identity: Option<SpiffeId>,
    /// Its cluster as it says itself.
    pub cluster: Option<Arc<str>>,
}

impl Side {
    /// Its cluster: as it says itself, else as the model knows it.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<str>> {
        self.cluster.as_ref().or_else(|| self.workload.as_ref().map(|workload| &workload.cluster))
    }
}

/// One of the two who talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// Who opened the connection.
    Client,
    /// Who accepted it.
    Server,
}

impl Party {
    /// As it stands in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Party::Client => "client",
            Party::Server => "server",
        }
    }

    fn other(self) -> Self {
        match self {
            Party::Client => Party::Server,
            Party::Server => Party::Client,
        }
    }
}

/// Which moment of a connection a record tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// It ended.
    #[default]
    End,
    /// It was opened; logged only where the end may be hours away.
    Open,
}

/// What there is to say about one connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// Opened or ended.
    pub moment: Moment,
    /// Which way.
    pub direction: Direction,
    /// Who opened it.
    pub source: Side,
    /// Where it went.
    pub destination: Side,
    /// The service the source named.
    pub service: Option<Arc<Service>>,
    /// The authority of the CONNECT, or the next hop's address.
    pub hbone: Option<String>,
    /// The client's own address as its node reported it, where a gateway stands between.
    pub forwarded_for: Option<String>,
    /// Bytes towards the destination and back.
    pub bytes: (u64, u64),
    /// From accept to the end.
    pub duration: Duration,
    /// From accept until bytes could flow.
    pub setup: Duration,
    /// How long each leg took that this very connection walked; a warm tunnel spares the first ones.
    pub legs: LegTimes,
    /// What went wrong: the leg and the words.
    pub error: Option<ConnError>,
    /// Who ended it with a reset, as applications may.
    pub reset_by: Option<Party>,
    /// Its span, where the connection belongs to a trace.
    pub span: Option<Span>,
    /// When it was handed over.
    pub(super) at: SystemTime,
    /// Where it is counted, once its bytes could flow.
    pub(super) account: Option<Arc<Account>>,
    /// Whether it has a line, where that was decided before its end.
    pub(super) logged: Option<bool>,
}

impl Record {
    /// A record with nothing known but its direction.
    pub fn new(direction: Direction) -> Self {
        Self {
            moment: Moment::End,
            direction,
            source: Side::default(),
            destination: Side::default(),
            service: None,
            hbone: None,
            forwarded_for: None,
            bytes: (0, 0),
            duration: Duration::ZERO,
            setup: Duration::ZERO,
            legs: LegTimes::default(),
            error: None,
            reset_by: None,
            span: None,
            at: SystemTime::UNIX_EPOCH,
            account: None,
            logged: None,
        }
    }

    /// Whether its bytes could flow.
    #[must_use]
    pub fn opened(&self) -> bool {
        self.account.is_some()
    }

    /// Notes how a copy of bytes ended whose socket on this side is that of `near`, and returns what failed. A reset by one of
    /// the two is no failure of any leg.
    pub fn ended(
        &mut self,
        result: Result<(), CopyError>,
        near: Party,
        peer: impl std::fmt::Display,
    ) -> Option<ConnError> {
        let error = result.err()?;
        let leg = match &error {
            CopyError::Reset(side) => {
                let by = if *side == ends::Side::Near { near } else { near.other() };
                self.reset_by = Some(by);
                // Behind a gateway there is no application, but a node that went away.
                if self.direction != Direction::Gateway || by == Party::Client {
                    return None;
                }
                Leg::Backend
            }
            CopyError::Lost(_) => Leg::OuterTcp,
            CopyError::Socket(_) | CopyError::Stream(_) | CopyError::NotTls | CopyError::Revoked(_) => Leg::Backend,
        };
        Some(ConnError::fatal(leg, peer, error))
    }

    /// The namespace whose switch decides about its line.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self.direction {
            Direction::Outbound => self.source.workload.as_ref().map(|workload| &*workload.namespace),
            Direction::Inbound => self.destination.workload.as_ref().map(|workload| &*workload.namespace),
            Direction::Gateway => self.service.as_ref().map(|service| &*service.namespace),
        }
    }
}
