//! What is shown, one function per step. Each fails if what it says does not hold.

use crate::clusters::Clusters;
use crate::clusters::deployed::MESH;
use crate::clusters::linked::{
    CHECK, CLIENT, CLIENT_IDENTITY, Cut, EXPOSE, FRONT, LINK, Linked, Outside, POSTGRESQL, STRANGER, WEB, clusters_in,
    db_policy,
};
use crate::daemon::field;
use crate::demo::report::Report;
use crate::{Capture, Error, Result, process};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The pod of the second cluster that is called by its own name.
const DB: &str = "http://db-1.db.shop.svc.cluster.local/";
const PATIENCE: Duration = Duration::from_secs(60);

/// Agents in both clusters.
pub(super) fn install<'a>(clusters: &'a Clusters, report: &mut Report) -> Result<Linked<'a>> {
    report.step("install", "Causeway in both, by its Helm chart");
    report.say(
        "$ helm install causeway deploy/charts/causeway -n istio-system --set multiCluster.clusterName=cluster1 \\\n    \
         --set profile=namespaces,image=causeway.test/causeway:1,network=network1      (and the same for cluster2)",
    );
    let linked = Linked::install(clusters)?;
    let line = "kubectl --context cluster1 -n istio-system get daemonset causeway";
    report.say(&format!("$ {line}\n{}", clusters.shell(line)?));
    Ok(linked)
}

/// All others in order.
pub(super) fn all(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    link(clusters, linked, report)?;
    let outside = Outside::of(clusters)?;
    let capture = Capture::start(outside.place(), &format!("{}-c1n1", clusters.tag()?))?;
    call(linked, report)?;
    identities(linked, report)?;
    stateful(linked, report)?;
    database(linked, report)?;
    policy(clusters, linked, report)?;
    encrypted(linked, report, capture)?;
    entry(clusters, linked, report)?;
    stranger(clusters, linked, report)?;
    top(clusters, linked, report)?;
    cut(clusters, linked, report)?;
    check(clusters, linked, report)
}

fn link(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("link", "An entry point for each cluster, and a link in both directions");
    report.say(&format!("$ {EXPOSE}\n{}", linked.expose()?));
    report.say(&format!("$ {LINK}\n{}", clusters.shell(LINK)?));
    let status = "causeway multicluster status --contexts cluster1,cluster2";
    report.say(&format!("$ {status}\n{}", clusters.shell(status)?));
    report.step("application", "The same application in both, and a StatefulSet in the second alone");
    report.say(
        "The namespace has the label istio.io/dataplane-mode=ambient, the services web and db istio.io/global=true.",
    );
    linked.application()?;
    linked.settle()?;
    let pods =
        "kubectl --context cluster1 -n shop get pods -o wide; kubectl --context cluster2 -n shop get pods -o wide";
    let text = clusters.shell(pods)?;
    let short = text.lines().map(|line| line.split_whitespace().take(7).collect::<Vec<_>>());
    for row in short {
        if let [name, ready, status, _, _, ip, node] = row.as_slice() {
            report.say(&format!("{name:<12} {ready:<6} {status:<8} {ip:<14} {node}"));
        }
    }
    Ok(())
}

fn call(linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("call", &format!("An ordinary curl to the name of the service, from both clusters: {WEB}"));
    for number in [1, 2] {
        let answers = linked.answers(number, CLIENT, WEB, 24)?;
        report.say(&format!("From cluster{number}, 24 calls:"));
        for (pod, count) in &answers {
            report.say(&format!("  {count:>2} answered by {pod}"));
        }
        report.fact(&format!("from_cluster{number}"), serde_json::json!(answers));
        if clusters_in(&answers) != ["cluster1", "cluster2"] || answers.contains_key("") {
            return Err(format!("not both clusters answered, or a call failed: {answers:?}").into());
        }
    }
    Ok(())
}

fn identities(linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("identities", "Who saw whom, in the access logs of cluster2");
    let client = "spiffe://cluster.local/ns/shop/sa/client";
    let find = |logs: &dyn Fn() -> Result<String>, direction: &str, more: &str| {
        let mut found = String::new();
        process::until(PATIENCE, || {
            let text = logs().unwrap_or_default();
            let wanted = [format!("direction={direction}"), format!("src.identity={client}"), more.to_owned()];
            let line = text.lines().find(|line| wanted.iter().all(|part| line.contains(part)));
            found = line.unwrap_or_default().to_owned();
            !found.is_empty()
        })
        .map_err(|error| Error(format!("no line with direction={direction} from {client}: {error}")))?;
        Ok::<_, Error>(found)
    };
    let gateway = find(&|| linked.gateway_logs(2), "gateway", "")?;
    let [_, second] = &linked.deployed;
    let inbound = find(&|| second.logs(), "inbound", " client=10.244.")?;
    let value = |line: &str, key: &str| field(line, key).unwrap_or("-").to_owned();
    for (name, text, seen) in [
        ("gateway", "the gateway saw the caller as          ", value(&gateway, "src.identity")),
        ("server", "the server's node saw the caller as    ", value(&inbound, "src.identity")),
        ("address", "and knows its address in cluster1      ", value(&inbound, " client")),
    ] {
        report.say(&format!("{text} {seen}"));
        report.fact(name, seen);
    }
    Ok(())
}

fn stateful(linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("stateful", &format!("From cluster1, a pod of cluster2's StatefulSet by its own name: {DB}"));
    let answers = linked.answers(1, CLIENT, DB, 6)?;
    report.say(&format!("6 calls: {answers:?}"));
    report.fact("answers", serde_json::json!(answers));
    if answers.get("cluster2/db-1") != Some(&6) {
        return Err(format!("it is not db-1 of cluster2 that answered: {answers:?}").into());
    }
    Ok(())
}

fn database(linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("database", "PostgreSQL on the same pod of cluster2, from cluster1");
    let ask = |statement: &str| {
        let said = linked.sql(1, CLIENT, statement)?;
        let shown = if said.is_empty() { "done" } else { said.as_str() };
        report.say(&format!("$ psql '{POSTGRESQL}' -c \"{statement}\"\n{shown}"));
        Ok::<_, Error>(said)
    };
    ask("create table if not exists orders (id serial, place text)")?;
    ask("insert into orders (place) select 'cluster1' from generate_series(1, 1000)")?;
    let rows = ask("select count(*) from orders where place = 'cluster1'")?;
    let host = ask("select trim(pg_read_file('/etc/hostname'))")?;
    report.fact("rows", rows.clone());
    report.fact("host", host.clone());
    if rows.parse().unwrap_or(0_u32) < 1000 || host != "db-1" {
        return Err(format!("it is not db-1 that holds the rows: {rows} rows, on {host}").into());
    }
    Ok(())
}

/// Clients outside by a port of the nodes.
fn entry(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("entry", "A client outside of the mesh calls the service front at a port of the nodes");
    let own = "172.29.0.1";
    report.say(&format!("Its address is {own}. Either node is an entry, and the pods of both answer:"));
    let mut seen = BTreeSet::new();
    // Each node takes the port as soon as it has heard of the service.
    process::until(PATIENCE, || {
        seen.clear();
        for node in ["172.29.1.1", "172.29.1.2"] {
            for _ in 0..8 {
                let url = format!("http://{node}:{FRONT}/");
                let words = ["curl", "--silent", "--show-error", "--max-time", "5", url.as_str()];
                let said = clusters.exec("wan", &words).unwrap_or_else(|error| error.to_string());
                seen.insert(format!("at {node}: {}", said.trim()));
            }
        }
        seen.len() == 4 && seen.iter().all(|line| line.ends_with(&format!(" client={own}")))
    })
    .map_err(|error| Error(format!("{error}: {seen:?}\n{}", linked.log_tails())))?;
    for line in &seen {
        report.say(&format!("  {line}"));
    }
    report.fact("seen", serde_json::json!(seen));
    Ok(())
}

fn policy(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step(
        "policy",
        "An AuthorizationPolicy in cluster2 lets the service account client alone call db, wherever it runs",
    );
    let policy = db_policy(CLIENT_IDENTITY);
    report.say(policy.trim_start());
    clusters.apply(2, &policy)?;
    let refused = || linked.answers(1, STRANGER, DB, 1).is_ok_and(|answers| answers.keys().eq([""]));
    process::until(PATIENCE, refused).map_err(|error| Error(format!("the stranger is not refused: {error}")))?;
    report.say("The pod stranger of cluster1 is refused, and cluster2's log says why:");
    let mut line = String::new();
    let [_, second] = &linked.deployed;
    process::until(PATIENCE, || {
        let logs = second.logs().unwrap_or_default();
        let found = logs.lines().find(|line| line.contains("sa/stranger") && line.contains("leg=accept/policy"));
        line = found.unwrap_or_default().to_owned();
        !line.is_empty()
    })
    .map_err(|error| Error(format!("no line about the refusal: {error}")))?;
    let reason = quoted(&line, "error").unwrap_or(&line).to_owned();
    report.say(&format!("  {} {reason}", field(&line, "src.identity").unwrap_or_default()));
    report.fact("reason", reason);
    let answers = linked.answers(1, CLIENT, DB, 4)?;
    report.say(&format!("The pod client of cluster1 is answered: {answers:?}"));
    if answers.get("cluster2/db-1") != Some(&4) {
        return Err(format!("the policy keeps the client out: {answers:?}").into());
    }
    Ok(())
}

fn encrypted(linked: &Linked<'_>, report: &mut Report, capture: Capture) -> Result<()> {
    report.step("capture", "What the cable of node c1n1 carried so far");
    let seen = capture.finish(&[b"GET / HTTP", b"cluster=cluster", b"HTTP/1.1 200"])?;
    report.say(&format!("{} packets, {} bytes.", seen.packets, seen.bytes));
    // Which node of cluster1 the other cluster enters by is its choice; what this node's pods call leaves by this cable.
    let port = linked.node_port(2)?;
    let there = seen.port(port);
    report.say(&format!("Port {port}, the gateways of cluster2: {} application data segments of TLS.", there.tls_data));
    if there.tls_data == 0 {
        return Err(format!("the recording does not contain the tunnels to cluster2: {there:?}").into());
    }
    report.say(&format!("Packets in which a request or an answer is readable: {}.", seen.readable.len()));
    report.fact("packets", seen.packets);
    report.fact("readable", seen.readable.len());
    if !seen.readable.is_empty() || seen.dropped > 0 {
        return Err(format!("readable: {:?}; {} packets were not recorded", seen.readable, seen.dropped).into());
    }
    Ok(())
}

fn stranger(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("outsider", "Somebody outside of all clusters knocks at the gateway's port of a node");
    let line =
        format!("curl --insecure --silent --show-error --max-time 10 https://172.29.2.1:{}/", linked.node_port(2)?);
    let done = clusters.try_shell(&line)?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    report.say(&format!("$ {line}\n{said}"));
    report.fact("refused", !done.status.success());
    if done.status.success() {
        return Err("the gateway served a caller without a certificate".into());
    }
    let mut refusal = String::new();
    let [_, second] = &linked.deployed;
    process::until(PATIENCE, || {
        let logs = linked.gateway_logs(2).unwrap_or_default();
        let mut refused = logs.lines().filter(|line| line.contains("direction=gateway"));
        refusal = refused.find_map(|line| quoted(line, "error")).unwrap_or_default().to_owned();
        // Where the agent takes the port, it is the one that meets the caller.
        let own = |text: &str| text.contains("src.addr=172.29.0.1:");
        !refusal.is_empty() && (own(&logs) || second.logs().is_ok_and(|text| own(&text)))
    })
    .map_err(|error| Error(format!("no line about 172.29.0.1, or no refusal: {error}")))?;
    report.say(&format!("The logs have 172.29.0.1, the caller's own address, and the gateway says: {refusal}"));
    report.fact("reason", refusal);
    Ok(())
}

fn top(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("top", "What runs on node c1n1, while the client calls");
    let [first, _] = &linked.deployed;
    let agent = first.agents()?.remove("c1n1").ok_or("no agent on c1n1")?;
    let words = ["-n", MESH, "exec", &agent, "--", "/usr/local/bin/causeway", "top", "--count", "1"];
    let shown = std::thread::scope(|scope| {
        let load = scope.spawn(|| linked.answers(1, CLIENT, WEB, 60));
        let shown = clusters.kubectl(1, &words);
        let answers = load.join().map_err(|_| Error::from("the load ended with a panic"))??;
        if answers.contains_key("") { Err(format!("calls failed: {answers:?}").into()) } else { shown }
    })?;
    report.say(&format!("$ kubectl -n istio-system exec {agent} -- causeway top --count 1\n{}", shown.trim_end()));
    if !shown.contains("outbound/s") {
        return Err(format!("that is no frame: {shown}").into());
    }
    Ok(())
}

fn cut(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step("cut", "The cable of c2n2, one of two nodes with a gateway of cluster2, is pulled");
    let cut = Cut::off(clusters, "c2n2")?;
    let begin = Instant::now();
    let (mut failed, mut calls) = (0, 0);
    loop {
        let answers = linked.answers(1, CLIENT, DB, 5)?;
        let now = answers.get("").copied().unwrap_or_default();
        (failed, calls) = (failed + now, calls + 5);
        if now == 0 {
            break;
        }
        if begin.elapsed() > Duration::from_secs(90) {
            return Err(format!("traffic does not go on: {failed} of {calls} calls failed").into());
        }
    }
    let seconds = begin.elapsed().as_secs();
    report.say(&format!(
        "Calls from cluster1 to db-1 go on through c2n1. Until the silent tunnels were given up, after {seconds} s, {failed} of {calls} calls failed."
    ));
    report.fact("failed", failed);
    report.fact("calls", calls);
    let answers = linked.answers(1, CLIENT, DB, 20)?;
    report.say(&format!("20 more: {answers:?}"));
    if answers.get("cluster2/db-1") != Some(&20) {
        return Err(format!("traffic does not go on: {answers:?}").into());
    }
    drop(cut);
    clusters.kubectl(2, &["wait", "--for=condition=Ready", "node/c2n2", "--timeout=120s"])?;
    linked.settle()?;
    report.say("The cable is back, and so is the node.");
    Ok(())
}

fn check(clusters: &Clusters, linked: &Linked<'_>, report: &mut Report) -> Result<()> {
    report.step(
        "check",
        "Is everything as it should be? And when somebody deletes what cluster1 knows of cluster2's entry point?",
    );
    let mut last = String::new();
    let green = |last: &mut String| {
        let done = clusters.try_shell(CHECK);
        *last = done.as_ref().map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
        done.is_ok_and(|done| done.status.success())
    };
    process::until(PATIENCE, || green(&mut last)).map_err(|error| Error(format!("{error}: {last}")))?;
    report.say(&format!("$ {CHECK}\n{last}"));
    let line = "kubectl --context cluster1 -n istio-eastwest delete gateway peer-cluster2";
    report.say(&format!("$ {line}\n{}", clusters.shell(line)?));
    let done = clusters.try_shell(CHECK)?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    report.say(&format!("$ {CHECK}\n{text}"));
    // Warnings come with a command, too.
    let mut lines = text.lines().skip_while(|line| !line.contains(" error: "));
    let repair = lines.find_map(|line| line.trim().strip_prefix("repair ")).map(str::to_owned);
    report.fact("exit_code", done.status.code());
    report.fact("repair", repair.clone());
    let (Some(1), Some(repair)) = (done.status.code(), repair) else {
        return Err(format!("the check did not find it, exit code {:?}: {text}", done.status.code()).into());
    };
    report.say(&format!("$ {repair}\n{}", clusters.shell(&repair)?));
    process::until(PATIENCE, || green(&mut last)).map_err(|error| Error(format!("{error}: {last}")))?;
    report.say(&format!("$ {CHECK}\n{last}"));
    linked.settle()
}

/// A value of a line that may hold blanks.
fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(&format!("{key}=\""))?.1.split('"').next()
}
