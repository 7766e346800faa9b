//! What to look at when a leg failed: the words that follow what happened, in the log and on the command line.

use std::io;

use super::Leg;

/// Why a CONNECT was not answered with 200, and where to look.
pub(super) fn status(leg: Leg, status: u16) -> String {
    match (status, leg) {
        (401 | 403, _) => {
            format!("denied by the policy of the peer (status {status}); the log of its node names the policy")
        }
        (400, _) => format!("refused as malformed (status {status}); the log of the peer says what it could not read"),
        (404, _) => format!("nothing of that name is there (status {status}); is it spelled right, and exported?"),
        (503, Leg::Backend) => format!(
            "the destination could not reach its application (status {status}); does it listen on that port? The log of \
             its node says more"
        ),
        (503, _) => format!(
            "the next hop has no endpoint for it (status {status}); is the service exported and are its pods ready there? \
             The log of the next hop says more"
        ),
        _ => format!("status {status}; the log of the peer says why"),
    }
}

/// What silence may mean. Tunnels have the pod's own address as their source, which other networks cannot answer.
const DROPPED: &str = "; does a firewall or NetworkPolicy drop the packets, or is the pod's address not translated on its way \
                       to another network?";

/// Why a socket was not connected, and where to look.
#[must_use]
pub fn connect(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => "; nothing listens there: is it running?",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "; this node has no way to it: check routes and the address that is published"
        }
        io::ErrorKind::TimedOut => DROPPED,
        io::ErrorKind::AddrNotAvailable => "; all source ports towards it are in use",
        io::ErrorKind::PermissionDenied => "; a local rule forbids it",
        _ => "",
    };
    format!("{error}{advice}")
}

/// Nobody answered for so long.
#[must_use]
pub fn silence(millis: u128) -> String {
    format!("no answer within {millis} ms{DROPPED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_and_error_has_words_and_keeps_its_number() {
        for code in [400, 401, 403, 404, 503, 418] {
            for leg in Leg::ALL {
                let text = status(leg, code);
                assert!(text.contains(&format!("status {code}")) && text.contains(';'), "{text}");
            }
        }
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT, libc::EADDRNOTAVAIL] {
            let error = io::Error::from_raw_os_error(errno);
            let text = connect(&error);
            assert!(text.starts_with(&error.to_string()) && text.contains("; "), "{text}");
        }
    }
}
