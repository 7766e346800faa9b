//! What becomes of connections that were opened before anybody knew whether their pod belongs to the mesh, or before it was
//! enrolled.

use crate::abi::{Hold, hold_kind};

/// Value of `HELD`: the pod belongs to the mesh and waits for its enrolment, however long that takes. Any other value is the time
/// until which it is unknown what the pod is, in nanoseconds of the kernel's monotonic clock.
pub const UNTIL_ENROLMENT: u64 = 0;

/// A time that is always over, for pods that `HELD` does not name. An `Option` would not do: the compiler combines its two halves
/// before it has tested the first, and the verifier refuses to read what was never written.
pub const NOT_HELD: u64 = 1;

/// Whether what tasks of a pod open now has to wait.
#[inline(always)]
pub const fn waits(until: u64, now: u64) -> bool {
    until == UNTIL_ENROLMENT || now < until
}

/// What happens to a packet of a held connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// It goes where the connection was directed.
    Pass,
    /// It goes on, and the connection is one like any other from now on.
    Release,
    /// It waits: what is dropped is sent again.
    Drop,
}

/// The verdict on a packet, with the value of `HELD` for the pod, or [`NOT_HELD`], and whether the pod is enrolled.
///
/// A connection that was directed to the engine passes as soon as there is one to take it, or nobody to wait for. One that still
/// goes where the application dialled passes only where the pod turns out not to be of the mesh.
#[inline(always)]
pub const fn egress(hold: &Hold, until: u64, enrolled: bool, now: u64) -> Egress {
    if hold.kind == hold_kind::DIRECTED {
        return if !enrolled && waits(until, now) { Egress::Drop } else { Egress::Pass };
    }
    if enrolled || waits(until, now) { Egress::Drop } else { Egress::Release }
}

/// Whether a connection can only fail: its pod belongs to the mesh, and it was not directed to the engine when it could be.
#[inline(always)]
pub const fn is_lost(hold: &Hold, until: u64, enrolled: bool) -> bool {
    hold.kind != hold_kind::DIRECTED && (enrolled || until == UNTIL_ENROLMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    #[test]
    fn a_time_ends_the_waiting_of_pods_nobody_knows_and_only_of_those() {
        assert!(waits(UNTIL_ENROLMENT, u64::MAX));
        assert!(waits(NOW + 1, NOW));
        assert!(!waits(NOW, NOW) && !waits(NOW - 1, NOW) && !waits(NOT_HELD, NOW));
    }

    #[test]
    fn nothing_of_a_pod_of_the_mesh_passes_that_was_not_directed_to_the_engine() {
        use Egress::{Drop, Pass, Release};
        let (later, past, enrolment) = (NOW + 1, NOW, UNTIL_ENROLMENT);
        for (kind, until, enrolled, expected) in [
            (hold_kind::DIRECTED, enrolment, false, Drop),
            (hold_kind::DIRECTED, enrolment, true, Pass),
            (hold_kind::DIRECTED, NOT_HELD, true, Pass),
            (hold_kind::DIRECTED, NOT_HELD, false, Pass),
            (hold_kind::AS_DIALLED, later, false, Drop),
            (hold_kind::AS_DIALLED, past, false, Release),
            (hold_kind::AS_DIALLED, NOT_HELD, false, Release),
            (hold_kind::AS_DIALLED, enrolment, false, Drop),
            (hold_kind::AS_DIALLED, enrolment, true, Drop),
            (hold_kind::AS_DIALLED, NOT_HELD, true, Drop),
            (hold_kind::AS_DIALLED, past, true, Drop),
        ] {
            let hold = Hold { kind, ..Hold::default() };
            assert_eq!(egress(&hold, until, enrolled, NOW), expected, "{kind} {until} {enrolled}");
            let lost = kind == hold_kind::AS_DIALLED && (enrolled || until == enrolment);
            assert_eq!(is_lost(&hold, until, enrolled), lost, "{kind} {until} {enrolled}");
        }
    }
}
