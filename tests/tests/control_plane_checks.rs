//! `causeway multicluster check` against real API servers and istiods: each thing broken, found, and repaired by its command.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod control_plane_common;

use control_plane_common::{GATEWAY, NAMESPACE, Stage};
use serde_json::{Value, json};
use testkit::istiod::tools;
use testkit::process::Proc;

const LINK: &str = "causeway multicluster link --from cluster1 --to cluster2";

#[test]
fn every_check_finds_what_was_broken_and_its_command_repairs_it() {
    testkit::needs_control_plane!();
    let stage = Stage::start("checks");
    let address = stage.address();
    stage.expose(&address);
    stage.operator.run_ok(LINK).unwrap();
    stage.all_is_well();
    for cluster in ["cluster1", "cluster2"] {
        let nodes = format!("kubectl --context {cluster} get nodes -o name");
        let nodes = stage.operator.run_ok(&nodes).unwrap();
        let patch = r#"{"spec":{"podCIDR":"10.244.0.0/16","podCIDRs":["10.244.0.0/16"]}}"#;
        for node in nodes.lines() {
            stage.operator.run_ok(&format!("kubectl --context {cluster} patch {node} -p '{patch}'")).unwrap();
        }
    }
    let istiod = "kubectl --context cluster1 -n istio-system set env deployment/istiod";
    let agent = "kubectl --context cluster1 -n istio-system set env daemonset/causeway";
    let space = "kubectl --context cluster1 label namespace istio-system --overwrite topology.istio.io/network";
    let gateway = format!("kubectl --context cluster2 -n {NAMESPACE}");
    let web = "-n default label service web";
    let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": "gone", "namespace": "default"}, "spec": {"network": "network1", "address": "10.244.99.99"}});
    for (check, line, text) in [
        ("istiod", format!("{istiod} AMBIENT_ENABLE_MULTI_NETWORK=false"), "AMBIENT_ENABLE_MULTI_NETWORK is not true"),
        ("istiod", format!("{istiod} PILOT_ENABLE_AMBIENT-"), "PILOT_ENABLE_AMBIENT is not true"),
        ("istiod", format!("{istiod} ISTIO_MULTIROOT_MESH-"), "ISTIO_MULTIROOT_MESH is not true"),
        ("istiod", format!("{istiod} ENABLE_PEERING_DISCOVERY=true"), "ENABLE_PEERING_DISCOVERY is true"),
        (
            "istiod",
            format!("{istiod} PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES=false"),
            "PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES is false",
        ),
        ("network", format!("{space}-"), "label topology.istio.io/network is missing"),
        ("network", format!("{agent} NETWORK=elsewhere"), "NETWORK of the agent is \"elsewhere\""),
        (
            "network",
            format!("{gateway} label service {GATEWAY} --overwrite topology.istio.io/network=elsewhere"),
            "the service is labelled with network \"elsewhere\"",
        ),
        ("trust", format!("{agent} TRUST_DOMAIN=other.example"), "TRUST_DOMAIN of the agent is \"other.example\""),
        ("dns", format!("{agent} ISTIO_META_DNS_CAPTURE=false"), "DNS of pods is not captured"),
        ("services", format!("kubectl --context cluster2 {web} istio.io/global-"), "global in cluster1 only"),
        (
            "services",
            "kubectl --context cluster2 -n default patch service web --type json \
             -p '[{\"op\":\"replace\",\"path\":\"/spec/ports/0/port\",\"value\":81}]'"
                .to_owned(),
            "ports are 80/TCP in cluster1, and 81/TCP in cluster2",
        ),
        ("workloads", format!("echo '{entry}' | kubectl --context cluster1 apply -f -"), "10.244.99.99"),
        ("waypoints", format!("kubectl --context cluster1 {web} istio.io/use-waypoint=wp"), "and none in cluster2"),
    ] {
        stage.breaks(check, &line, text, None);
    }
    // Both name the waypoint by now, and it is in neither.
    let (found, code) = stage.told("waypoints", "names a waypoint that is not there");
    assert_eq!((&found["where"], code), (&json!("cluster1: gateway default/wp"), 1));
    for cluster in ["cluster1", "cluster2"] {
        let line = format!("kubectl --context {cluster} {web} istio.io/use-waypoint- istio.io/use-waypoint-namespace-");
        stage.operator.run_ok(&line).unwrap();
    }
    stage.gone("waypoints", "");
    // Commands that need kubelets or charts of others are replaced by what they would do.
    stage.breaks(
        "names",
        &format!("{istiod} CLUSTER_ID=cluster2"),
        "both clusters are called cluster2",
        Some(&format!("{istiod} CLUSTER_ID=cluster1")),
    );
    let status = |ready: u8| {
        format!(
            "kubectl --context cluster1 -n istio-system patch daemonset causeway --subresource=status --type merge -p '{{\"status\":{{\"numberReady\":{ready}}}}}'"
        )
    };
    stage.breaks("pods", &status(0), "0 of 1 node agents are ready", Some(&status(1)));
    stage.breaks(
        "gateway",
        &format!("{gateway} delete gateway {GATEWAY}"),
        "are linked to this one, and it has no entry point",
        None,
    );
    stage.until_addressed(&address);

    stage.all_is_well();
    println!("{}", stage.operator.run_ok("causeway multicluster check --verbose").unwrap());
}

#[test]
fn authorities_are_held_against_every_root_and_the_time() {
    testkit::needs_control_plane!();
    let stage = Stage::start("authorities");
    // Of another root than all others.
    let folder = stage.clusters.topology.scratch().join("foreign");
    let foreign = folder.display();
    stage
        .operator
        .run_ok(&format!("causeway ca --out {foreign} --trust-domain cluster.local --cluster cluster1"))
        .unwrap();
    let files = "--from-file=ca-cert.pem --from-file=ca-key.pem --from-file=cert-chain.pem --from-file=root-cert.pem";
    let replace = format!(
        "kubectl --context cluster1 -n istio-system create secret generic cacerts {files} --dry-run=client -o yaml \
         | kubectl --context cluster1 replace --force -f -"
    );
    let back = format!("cd {} && {replace}", stage.planes[0].authority().display());
    stage.breaks(
        "certificates",
        &format!("cd {foreign}/cluster1 && {replace}"),
        "leads to no root of cluster2",
        Some(&back),
    );
    let root = stage.clusters.topology.authority(stage.clusters.clusters[0]).parent().unwrap().to_owned();
    // Authorities of the right root whose time is over, is soon, or has not come.
    for (begin, days, text) in [(-10, -2, "expired"), (-10, 9, "expires in "), (5, 90, "is not valid yet")] {
        let dated = stage.clusters.topology.scratch().join(format!("dated{days}"));
        testkit::certificates::authority_between(&root, &dated, (begin, days)).unwrap();
        stage.breaks("certificates", &format!("cd {} && {replace}", dated.display()), text, Some(&back));
    }
    let garbage = stage.clusters.topology.scratch().join("garbage");
    let copied = format!(
        "cp -r {} {garbage} && cd {garbage} && printf -- '-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n' > ca-cert.pem",
        stage.planes[0].authority().display(),
        garbage = garbage.display(),
    );
    stage.breaks(
        "certificates",
        &format!("{copied} && {replace}"),
        "a certificate cannot be read: ca-cert.pem",
        Some(&back),
    );
}

#[test]
fn what_settings_and_objects_lack_is_found_and_back_when_it_is_given_back() {
    testkit::needs_control_plane!();
    let stage = Stage::start("lacks");
    let address = stage.address();
    stage.expose(&address);
    stage.operator.run_ok(LINK).unwrap();
    stage.all_is_well();
    let run = |line: &str| stage.operator.run_ok(line).unwrap();

    // Two contexts of one cluster.
    run("kubectl config set-context again --cluster=cluster2 --user=admin");
    let twice = stage.operator.run("causeway multicluster check --contexts cluster2,again").unwrap();
    assert_eq!(twice.status.code(), Some(1), "{twice:?}");
    assert!(twice.stdout.contains("both contexts lead to the same cluster"), "{twice:?}");
    let repair = twice.stdout.lines().find_map(|line| line.trim().strip_prefix("repair ")).unwrap();
    assert!(run(repair).contains("cluster1"), "{repair}");

    // Somebody who may not see everything.
    let limited = "kubectl --context cluster1 create serviceaccount limited -n default \
         && kubectl --context cluster1 create clusterrole limited --verb=list --resource=namespaces,nodes,pods,services,configmaps,deployments.apps,daemonsets.apps,gateways.gateway.networking.k8s.io,workloadentries.networking.istio.io \
         && kubectl --context cluster1 create clusterrolebinding limited --clusterrole=limited --serviceaccount=default:limited \
         && kubectl config set-credentials limited --token=$(kubectl --context cluster1 create token limited -n default)";
    run(limited);
    let user = |name: &str| format!("kubectl config set-context cluster1 --user={name}");
    let own = run("kubectl config view -o jsonpath='{.contexts[?(@.name==\"cluster1\")].context.user}'");
    run(&user("limited"));
    let (found, _) = stage.told("kinds", "objects of kind Secret cannot be read");
    assert!(run(found["repair"].as_str().unwrap()).contains("workloadentries"), "{found}");
    run(&user(&own));
    stage.gone("kinds", "");

    // Services that no cluster shares, and a trust domain of its own.
    let mesh = run("kubectl --context cluster2 -n istio-system get configmap istio -o jsonpath='{.data.mesh}'");
    let with = |mesh: &Value| {
        let patch = json!({"data": {"mesh": mesh.to_string()}});
        format!("kubectl --context cluster2 -n istio-system patch configmap istio --type merge -p '{patch}'")
    };
    let mesh: Value = serde_json::from_str(&mesh).unwrap();
    let changed = |key: &str, value: Value| {
        let mut changed = mesh.clone();
        changed[key] = value;
        with(&changed)
    };
    let back = with(&mesh);
    stage.breaks("istiod", &changed("serviceScopeConfigs", json!([])), "calls no service global", Some(&back));
    run(&changed("trustDomain", json!("other.example")));
    let (found, code) = stage.told("trust", "in trust domain \"cluster.local\", cluster2 in \"other.example\"");
    assert_eq!((&found["severity"], code), (&json!("warning"), 1), "and the gateway proves another identity");
    stage.told("probe", "expected spiffe://other.example/");
    run(&back);
    stage.gone("trust", "");

    // One network for both, and in it the same pod addresses twice.
    let space = "kubectl --context cluster2 label namespace istio-system --overwrite topology.istio.io/network";
    for cluster in ["cluster1", "cluster2"] {
        let nodes = run(&format!("kubectl --context {cluster} get nodes -o name"));
        let patch = r#"{"spec":{"podCIDR":"10.244.0.0/16","podCIDRs":["10.244.0.0/16"]}}"#;
        for node in nodes.lines() {
            run(&format!("kubectl --context {cluster} patch {node} -p '{patch}'"));
        }
    }
    run(&format!("{space}=network1"));
    stage.told("network", "both clusters are in network \"network1\"");
    let (found, _) = stage.told("ranges", "pod ranges 10.244.0.0/16 and 10.244.0.0/16 overlap within network");
    run(found["repair"].as_str().unwrap());
    stage.gone("ranges", "");
    assert_eq!(stage.finding("network", "both clusters are in").0, None);
    run(&format!("{space}=network2"));
    stage.gone("network", "");

    let gateway = format!("kubectl --context cluster2 -n {NAMESPACE}");
    stage.breaks(
        "network",
        &format!("{gateway} label gateway {GATEWAY} --overwrite topology.istio.io/network=elsewhere"),
        "the gateway is labelled with network \"elsewhere\"",
        None,
    );
    stage.all_is_well();

    // Pods that are not ready, as kubelets would tell.
    let status = |what: &str, patch: &Value| {
        format!("kubectl --context cluster2 {what} --subresource=status --type merge -p '{}'", json!({"status": patch}))
    };
    let istiod = |count: u8| {
        status("-n istio-system patch deployment istiod", &json!({"readyReplicas": count, "availableReplicas": count}))
    };
    stage.breaks("pods", &istiod(0), "0 of 1 pods of istiod are ready", Some(&istiod(1)));
    let pod = |ready: &str| {
        let what = format!("-n {NAMESPACE} patch pod {GATEWAY}-1");
        status(&what, &json!({"conditions": [{"type": "Ready", "status": ready}]}))
    };
    run(&pod("False"));
    stage.told("pods", "0 of 1 gateway pods are ready");
    stage.told("gateway", "none of 1 pods behind the entry point is ready");
    run(&pod("True"));
    stage.gone("pods", "");

    // A load balancer that takes its address back.
    let balancer = |ingress: Value| {
        status(&format!("-n {NAMESPACE} patch service {GATEWAY}"), &json!({"loadBalancer": {"ingress": ingress}}))
    };
    run(&balancer(json!([])));
    let pending = "the gateway is not programmed: Assigned to service(s)";
    let lost = || stage.finding("gateway", pending).0.is_some();
    testkit::process::until(std::time::Duration::from_secs(30), lost)
        .unwrap_or_else(|_| panic!("{}", run(&format!("{gateway} get gateway {GATEWAY} -o yaml"))));
    let (found, _) = stage.told("gateway", pending);
    assert!(run(found["repair"].as_str().unwrap()).contains(&format!("service/{GATEWAY}")), "{found}");
    run(&balancer(json!([{"ip": address}])));
    stage.until_addressed(&address);
    stage.all_is_well();

    // What istiod and the Gateway API bring, taken away.
    run("kubectl --context cluster2 -n istio-system delete deployment istiod");
    stage.told("istiod", "no deployment of istiod");
    stage.planes[1].describe(&stage.clusters.topology).unwrap();
    stage.gone("istiod", "");
    for (file, kind, text) in [
        ("istio-crds.yaml", "workloadentries.networking.istio.io", "the kind WorkloadEntry of Istio is not installed"),
        (
            "gateway-crds.yaml",
            "gateways.gateway.networking.k8s.io",
            "the kind Gateway of gateway.networking.k8s.io/v1 is not",
        ),
    ] {
        let file = tools().unwrap().join(file);
        let again = format!("kubectl --context cluster1 apply --server-side -f {}", file.display());
        stage.breaks("kinds", &format!("kubectl --context cluster1 delete crd {kind}"), text, Some(&again));
    }
    stage.all_is_well();
}

#[test]
fn whoever_answers_in_place_of_a_gateway_is_told_from_one() {
    testkit::needs_control_plane!();
    let mut stage = Stage::start("impostors");
    let address = stage.address();
    stage.expose(&address);
    stage.operator.run_ok(LINK).unwrap();
    stage.all_is_well();
    let node = stage.clusters.gateway_node;
    let place = stage.clusters.topology.node_place(node).clone();
    let scratch = stage.clusters.topology.scratch().to_owned();
    stage.clusters.topology.terminate_daemon(node).unwrap();
    let (_, code) = stage.told("probe", "TCP does not connect");
    assert_eq!(code, 1);

    let authority = stage.clusters.topology.authority(stage.clusters.clusters[1]);
    let other = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/other");
    let leaf = testkit::certificates::issue(&authority, &other, &scratch).unwrap();
    let plain = scratch.join("plain");
    let (key, certificate) = (format!("{}.key", plain.display()), format!("{}.crt", plain.display()));
    let request =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
    place.run_ok(&[&request[..], &["-subj", "/CN=plain", "-keyout", &key, "-out", &certificate]].concat()).unwrap();
    let (chain, leaf_key) = (leaf.chain.display().to_string(), leaf.key.display().to_string());
    for (words, text) in [
        (vec!["-tls1_2", "-cert", &certificate, "-key", &key], "TCP connects, TLS does not".to_owned()),
        (vec!["-cert", &certificate, "-key", &key], "what answers presents no SPIFFE identity".to_owned()),
        (vec!["-cert", &chain, "-key", &leaf_key], format!("what answers is {other}, expected")),
    ] {
        let accept = format!("{address}:15008");
        let line = [&["openssl", "s_server", "-quiet", "-accept", &accept][..], &words].concat();
        let impostor: Proc = place.spawn(&line).unwrap();
        let found = || stage.finding("probe", &text).0.is_some();
        testkit::process::until(std::time::Duration::from_secs(20), found)
            .unwrap_or_else(|_| panic!("{text:?}: {}", impostor.stderr()));
        stage.told("probe", &text);
    }
    stage.clusters.topology.launch(node).unwrap();
    stage.gone("probe", "");
    stage.all_is_well();
}
