//! How a node ends: open connections get the time that was said, and are reset after it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;
use testkit::fixture::TwoClusters;

/// Longer than a node waits without a word.
const PAST_THE_DEFAULT: Duration = Duration::from_secs(6);

#[test]
fn the_environment_says_how_long_open_connections_may_go_on() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("drain").unwrap();
    stage.peer_service("default/echo", "echo", 2507).unwrap();
    stage.topology.set_environment(&[("TERMINATION_GRACE_PERIOD_SECONDS", "35")]);
    let mut stage = stage.started().unwrap();
    let to = format!("{}:2507", stage.vip("default/echo"));
    let idle = |stage: &TwoClusters| {
        let mut idle = stage.client.spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
        idle.wait_for("open 20", Duration::from_secs(20)).unwrap();
        idle
    };
    let node = stage.client_node;
    let mut patient = idle(&stage);
    stage.topology.daemon(node).signal(libc::SIGTERM).unwrap();
    stage.topology.daemon(node).wait_for_log("draining for up to 30 s").unwrap();
    std::thread::sleep(PAST_THE_DEFAULT);
    patient.close_input();
    let done = patient.wait(Duration::from_secs(20)).unwrap();
    assert!(done.stdout.contains("alive 20"), "{}{}", done.stdout, done.stderr);
    stage.topology.terminate_daemon(node).unwrap();

    // What is said for connections counts before what is said for the pod.
    let variables = [("CONNECTION_TERMINATION_DEADLINE", "0s"), ("TERMINATION_GRACE_PERIOD_SECONDS", "3600")];
    stage.topology.set_environment(&variables);
    stage.topology.launch(node).unwrap();
    stage.topology.wait_ready(node).unwrap();
    let mut cut = idle(&stage);
    stage.topology.terminate_daemon(node).unwrap();
    cut.close_input();
    let done = cut.wait(Duration::from_secs(20)).unwrap();
    assert!(
        !done.status.success() && done.stderr.contains("connection 0 after idling"),
        "{}{}",
        done.stdout,
        done.stderr
    );
}
