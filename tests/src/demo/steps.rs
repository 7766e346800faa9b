//! What the demo shows, one function per step. Each fails if what it says does not hold.

use super::report::Report;
use super::stage::{NAME, SERVICE, Stage};
use super::watch;
use crate::daemon::field;
use crate::topology::{NodeId, gateway_identity};
use crate::{Capture, Error, Pod, Result, context, resolver};
use std::collections::BTreeMap;

/// Repeated, so that any packet with a piece of the payload holds it whole.
const MARKER: &str = "not-one-byte-of-this-may-be-readable;";

pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// Calls of the curl step.
const CALLS: usize = 12;

/// All steps in order. The recording of the link runs from before the first connection until the payload was sent.
pub fn all(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let link = stage.topology.link_of(stage.clusters[1]);
    let capture = Capture::start(&stage.topology.wan_place(), &link)?;
    curl(stage, report)?;
    identities(stage, report)?;
    client_address(stage, report)?;
    payload(stage, report, capture)?;
    watch::throughput(stage, report)?;
    watch::policy(stage, report)?;
    outsider(stage, report)?;
    netfilter(stage, report)
}

/// Where the applications believe their name server to be. Nobody is there: the names are the mesh's.
const NAME_SERVER: &str = "10.96.0.10";

pub(super) fn call(pod: &Pod, url: &str) -> Result<String> {
    resolver::run_ok(pod, &[NAME_SERVER], &["curl", "--ipv4", "--silent", "--show-error", "--max-time", "10", url])
}

fn curl(stage: &Stage, report: &mut Report) -> Result<()> {
    let url = format!("http://{NAME}/");
    report.step("curl", &format!("In cluster1, an ordinary curl to the name of the service: {url}"));
    report.say(&format!("Its only endpoints are two pods in cluster2, in {} like the client.", stage.pod_range()));
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..CALLS {
        let answer = call(&stage.client, &url)?;
        if *answers.entry(answer.clone()).and_modify(|count| *count += 1).or_insert(1) == 1 {
            report.say(&format!("$ curl {url}\n{answer}"));
        }
    }
    for pod in &stage.web {
        let name = &pod.data().name;
        let count: usize = answers
            .iter()
            .filter(|(answer, _)| answer.contains(&format!("pod={name} ")))
            .map(|(_, count)| *count)
            .sum();
        report.fact(name, count);
        report.say(&format!("{count} of {CALLS} calls answered by {name}."));
        if count == 0 {
            return Err(format!("{name} answered none of {CALLS} calls; answers: {answers:?}").into());
        }
    }
    Ok(())
}

fn identities(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("identities", "Who saw whom: the access logs of the three nodes");
    let log = |node: NodeId, texts: &[&str]| stage.topology.daemon(node).wait_for_line(texts);
    let value = |line: &str, key: &str| {
        field(line, key).map(str::to_owned).ok_or_else(|| Error(format!("no {key} in the line: {line}")))
    };
    let client = stage.client.identity(TRUST_DOMAIN);
    let web = stage.web[0].identity(TRUST_DOMAIN);
    let outbound = log(stage.client_node, &["direction=outbound", "dst.identity="])?;
    let gateway = log(stage.gateway_node, &["direction=gateway", "src.identity="])?;
    let inbound = log(stage.other_node, &["direction=inbound", "src.identity="])?;
    let rows = [
        ("client_node_saw_server", "the client's node saw the server as ", value(&outbound, "dst.identity")?, &web),
        ("gateway_saw_client", "the gateway saw the caller as       ", value(&gateway, "src.identity")?, &client),
        ("server_node_saw_client", "the server's node saw the caller as ", value(&inbound, "src.identity")?, &client),
    ];
    for (name, text, seen, wanted) in rows {
        report.say(&format!("{text} {seen}"));
        report.fact(name, seen.clone());
        if &seen != wanted {
            return Err(format!("{name}: saw {seen}, but it is {wanted}").into());
        }
    }
    report.say(&format!("The gateway's own name is {}; it forwarded without reading.", gateway_identity(TRUST_DOMAIN)));
    Ok(())
}

fn client_address(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("client_address", "Which client address the application sees");
    let url = format!("http://{NAME}/");
    let inside = address_in(&call(&stage.neighbour, &url)?)?;
    let own = stage.neighbour.data().ip4.to_string();
    report.say(&format!("From client2 in the same cluster: {inside} (its own address)."));
    report.fact("within_cluster", inside.clone());
    if inside != own {
        return Err(format!("within the cluster nginx saw {inside} instead of {own}").into());
    }
    let across = address_in(&call(&stage.client, &url)?)?;
    let gateway = stage.gateway_ip().to_string();
    report.say(&format!("From client in the other cluster: {across} (the gateway's: pod ranges overlap)."));
    report.fact("across_clusters", across.clone());
    if across != gateway {
        return Err(format!("across clusters nginx saw {across} instead of {gateway}").into());
    }
    let line = stage.topology.daemon(stage.other_node).wait_for_line(&["direction=inbound", " client="])?;
    let logged = field(&line, " client").unwrap_or_default().to_owned();
    report.say(&format!("The access log of the server's node names the true one: {logged}"));
    report.fact("logged", logged.clone());
    if !logged.contains(&stage.client.data().ip4.to_string()) {
        return Err(format!("the log names {logged} instead of {}", stage.client.data().ip4).into());
    }
    Ok(())
}

/// The address in an answer of nginx; it writes IPv4 addresses in their IPv6 form on a socket of both families.
fn address_in(answer: &str) -> Result<String> {
    let (_, address) = answer.split_once("client=").ok_or_else(|| Error(format!("no address in {answer:?}")))?;
    Ok(address.trim().trim_start_matches("::ffff:").to_owned())
}

fn payload(stage: &Stage, report: &mut Report, capture: Capture) -> Result<()> {
    report.step("capture", "What crossed the link between the clusters so far, and with 8 MiB of a known text");
    let file = stage.topology.scratch().join("payload");
    let text = MARKER.repeat((8 << 20) / MARKER.len());
    std::fs::write(&file, text).map_err(context(file.display()))?;
    let url = format!("http://{NAME}/");
    let from = format!("@{}", file.display());
    let line = ["curl", "--ipv4", "--silent", "--max-time", "20", "--header", "Expect:", "--data-binary", &from, &url];
    resolver::run_ok(&stage.client, &[NAME_SERVER], &line)?;
    // The answers of the earlier calls are payload as well.
    let seen = capture.finish(&[MARKER.as_bytes(), b"pod=default/web", b"GET / HTTP", b"POST / HTTP"])?;
    let hbone = seen.port(15008);
    report.say(&format!(
        "{} packets, {} bytes; port 15008 carried {} TLS handshake and {} application data segments.",
        seen.packets, seen.bytes, hbone.tls_handshakes, hbone.tls_data
    ));
    report.fact("packets", seen.packets);
    report.fact("bytes", seen.bytes);
    report.fact("tls_handshakes", hbone.tls_handshakes);
    report.fact("readable", seen.readable.len());
    report
        .say(&format!("Packets in which the text, the requests or the answers are readable: {}.", seen.readable.len()));
    if !seen.readable.is_empty() {
        return Err(format!("payload is readable on the link: {:?}", seen.readable).into());
    }
    if hbone.tls_handshakes == 0 || hbone.tls_data == 0 || seen.bytes < 8 << 20 {
        return Err(format!("the recording does not contain the tunnels: {hbone:?}, {} bytes", seen.bytes).into());
    }
    if seen.dropped > 0 {
        return Err(format!("the recording misses {} packets, so it proves nothing", seen.dropped).into());
    }
    Ok(())
}

fn outsider(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("outsider", "A pod outside the mesh tries the same");
    let url = format!("https://{}:15008/", stage.gateway_ip());
    let done = stage.outsider.run(&["curl", "--silent", "--show-error", "--insecure", "--max-time", "10", &url])?;
    let reason = done.stderr.trim().to_owned();
    report.say(&format!("$ curl --insecure {url}\n{reason}"));
    report.fact("refused", !done.status.success());
    report.fact("reason", reason.clone());
    if done.status.success() {
        return Err(format!("the gateway served a caller without a certificate: {}", done.stdout).into());
    }
    let from = stage.outsider.data().egress4.to_string();
    let line = stage.topology.daemon(stage.gateway_node).wait_for_line(&[&from])?;
    report.say(&format!("The gateway refused it and says why:\n{}", line.trim()));
    report.fact("log", line.trim());
    let vip = stage.topology.vip(stage.clusters[0], SERVICE);
    let done = stage.outsider.run(&["curl", "--silent", "--max-time", "2", &format!("http://{vip}/")])?;
    report.say("To it the service address is just an address that nobody answers.");
    if done.status.success() {
        return Err(format!("the outsider reached the service: {}", done.stdout).into());
    }
    Ok(())
}

fn netfilter(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("netfilter", "iptables-save and nft list ruleset in every namespace");
    let rules = stage.topology.netfilter_rules()?;
    report.fact("rules", rules.len());
    if !rules.is_empty() {
        return Err(format!("there are netfilter rules: {}", rules.join("; ")).into());
    }
    report.say("Empty everywhere: all redirection above was eBPF.");
    Ok(())
}
