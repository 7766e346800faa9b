//! `expose`, `link` and `unlink`: everything is looked at before anything is changed.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::clusters::{Known, read};
use super::inspect::now;
use super::{Ended, Expose, Form, Link, Links, Unlink};
use crate::multicluster::check::{self, Scene};
use crate::multicluster::expose::Exposure;
use crate::multicluster::facts::Kind;
use crate::multicluster::finding::Finding;
use crate::multicluster::{link, probe, reader, yaml};

/// How long a cluster may take to make the token of a new account.
const TOKEN: Duration = Duration::from_secs(20);

/// What happens in one cluster.
struct Change {
    context: String,
    applied: Vec<Value>,
    deleted: Vec<Value>,
}

pub(super) async fn expose(args: &Expose) -> Result<ExitCode, Ended> {
    if args.which.contexts.is_empty() {
        return Err(Ended::Usage("name the clusters to expose: --context NAME".to_owned()));
    }
    let known = read(&args.which.place, &args.which.contexts).await?;
    let mut refused = Vec::new();
    let mut changes = Vec::new();
    for Known { cluster, .. } in &known {
        refused.extend(check::unfit(cluster));
        match Exposure::of(cluster, args.image.clone(), args.node_port) {
            Err(finding) => refused.push(*finding),
            Ok(mut exposure) => {
                if args.no_pods {
                    exposure.image = None;
                } else if exposure.image.is_none() {
                    refused.push(no_image(&cluster.context));
                }
                if !args.exports.is_empty() {
                    exposure.exports.clone_from(&args.exports);
                }
                exposure.pass_istiod = args.istiod;
                let deleted = exposure.removed(cluster);
                changes.push(Change { context: cluster.context.clone(), applied: exposure.objects(), deleted });
            }
        }
    }
    refused.dedup();
    if !refused.is_empty() {
        return Err(Ended::Refused(refused));
    }
    finish(&known, changes, args.generate, args.which.place.output).await
}

fn no_image(context: &str) -> Finding {
    Finding::error("gateway", "no image for the gateway's pods", context)
        .why("no node agent of Causeway runs here whose image could be taken")
        .repair(format!("causeway multicluster expose --context {context} --image IMAGE # or --no-pods"))
}

/// Places in the list of clusters: of the one that calls, and of the one that is called.
type Pair = (usize, usize);

/// Ordered pairs of places in the list of clusters, and the contexts to read.
fn pairs(links: &Links, to: Option<&String>) -> Result<(Vec<String>, Vec<Pair>), Ended> {
    if let (Some(from), Some(to)) = (&links.from, to) {
        return Ok((vec![from.clone(), to.clone()], vec![(0, 1)]));
    }
    if links.contexts.len() < 2 {
        return Err(Ended::Usage("a link needs two clusters: --contexts A,B or --from A --to B".to_owned()));
    }
    let count = links.contexts.len();
    let all = (0..count).flat_map(|from| (0..count).filter(move |to| *to != from).map(move |to| (from, to)));
    Ok((links.contexts.clone(), all.collect()))
}

/// How long entry points may take that were made a moment ago: every node has to hear of them first.
const ENTRY_STARTS: Duration = Duration::from_secs(15);

pub(super) async fn link(args: &Link) -> Result<ExitCode, Ended> {
    let (contexts, pairs) = pairs(&args.links, args.to.as_ref())?;
    if let Some((other, _)) = args.api_server.iter().find(|(context, _)| !contexts.contains(context)) {
        return Err(Ended::Usage(format!("--api-server names the context {other:?}, which is none of those linked")));
    }
    let known = read(&args.links.place, &contexts).await?;
    let way = args.way();
    let mut refused: Vec<Finding> = Vec::new();
    let mut plans = Vec::new();
    for (from, to) in pairs {
        let (Some(from), Some(to)) = (known.get(from), known.get(to)) else { continue };
        let plan = link::plan(&from.cluster, &to.cluster, &way);
        let mut scene =
            Scene { clusters: vec![from.cluster.clone(), to.cluster.clone()], now: now(), ..Scene::default() };
        if let (Ok(plan), false) = (&plan, args.skip_probe) {
            let (addresses, port) = &plan.dialled;
            let targets = addresses.iter().map(|address| (to.cluster.context.clone(), address.clone(), *port));
            scene.probes = probe::until_all_answer(targets.collect(), ENTRY_STARTS);
        }
        let found = check::refusals(&scene, &way);
        refused.extend(found.into_iter().filter(|finding| !refused.contains(finding)).collect::<Vec<_>>());
        if let Ok(plan) = plan {
            plans.push((from, to, plan));
        }
    }
    if !refused.is_empty() {
        return Err(Ended::Refused(refused));
    }
    let mut changes = Vec::new();
    for (from, to, plan) in plans {
        if !args.generate {
            apply(to, &plan.there).await?;
        }
        let mut applied = plan.here;
        match secret(args, from, to).await? {
            Some(secret) => applied.push(secret),
            None => eprintln!(
                "# the secret {} for {} holds a token that {} makes once its objects exist: generate again then",
                reader::secret_name(&to.cluster.label()),
                from.cluster.context,
                to.cluster.context
            ),
        }
        if args.generate {
            changes.push(Change { context: to.cluster.context.clone(), applied: plan.there, deleted: Vec::new() });
        }
        changes.push(Change { context: from.cluster.context.clone(), applied, deleted: plan.stale });
    }
    finish(&known, changes, args.generate, args.links.place.output).await
}

/// The secret by which `from` reads `to`; none where nothing may be changed and the token does not exist yet.
async fn secret(args: &Link, from: &Known, to: &Known) -> Result<Option<Value>, Ended> {
    let (reader_name, name) = (from.cluster.label(), to.cluster.label());
    let namespace = &to.cluster.istio_namespace;
    let wanted = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": reader::token_secret(&reader_name), "namespace": namespace}});
    let deadline = tokio::time::Instant::now() + TOKEN;
    loop {
        let found = to.api.get(&wanted).await.ok().and_then(|secret| reader::token(&secret));
        if let Some((token, authority)) = found {
            let given = args.api_server.iter().find(|(context, _)| *context == to.cluster.context);
            let server = given.map_or(to.cluster.server.as_str(), |(_, url)| url.as_str());
            let namespace = &from.cluster.istio_namespace;
            return Ok(Some(reader::remote_secret(&name, server, &authority, &token, namespace)));
        }
        if args.generate {
            return Ok(None);
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Ended::Failed(format!(
                "{}: secret {namespace}/{} got no token within {} s; is the controller manager running there?",
                to.cluster.context,
                reader::token_secret(&reader_name),
                TOKEN.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn unlink(args: &Unlink) -> Result<ExitCode, Ended> {
    if let (Some(from), Some(peer)) = (&args.links.from, &args.peer) {
        let known = read(&args.links.place, std::slice::from_ref(from)).await?;
        readable(&known)?;
        for Known { cluster, .. } in &known {
            if link::unlinked(cluster, peer).is_empty() {
                let linked: Vec<String> = cluster.remote_secrets().into_iter().map(|secret| secret.cluster).collect();
                eprintln!(
                    "causeway: nothing in {from} leads to a cluster called {peer:?}; it reads: {}",
                    linked.join(", ")
                );
            }
        }
        let changes = known.iter().map(|Known { cluster, .. }| Change {
            context: cluster.context.clone(),
            applied: Vec::new(),
            deleted: link::unlinked(cluster, peer),
        });
        let changes = changes.collect();
        return finish(&known, changes, args.generate, args.links.place.output).await;
    }
    if args.links.from.is_some() && args.to.is_none() {
        return Err(Ended::Usage("--from needs --to CONTEXT, or --peer CLUSTER where that is gone".to_owned()));
    }
    let (contexts, pairs) = pairs(&args.links, args.to.as_ref())?;
    let known = read(&args.links.place, &contexts).await?;
    readable(&known)?;
    let mut changes = Vec::new();
    for (from, to) in pairs {
        let (Some(from), Some(to)) = (known.get(from), known.get(to)) else { continue };
        let name = to.cluster.label();
        changes.push(Change {
            context: from.cluster.context.clone(),
            applied: Vec::new(),
            deleted: link::unlinked(&from.cluster, &name),
        });
        changes.push(Change {
            context: to.cluster.context.clone(),
            applied: Vec::new(),
            deleted: reader::removed(&from.cluster.label(), &to.cluster.istio_namespace),
        });
    }
    finish(&known, changes, args.generate, args.links.place.output).await
}

/// Refuses to say that a link is gone where it could not be looked for: its parts, and the names of clusters.
fn readable(known: &[Known]) -> Result<(), Ended> {
    let kinds = [Kind::Secret, Kind::Gateway, Kind::Deployment];
    let unknown = known
        .iter()
        .flat_map(|known| kinds.into_iter().filter_map(move |kind| check::unknown(&known.cluster, "access", kind)));
    let unknown: Vec<Finding> = unknown.collect();
    if unknown.is_empty() { Ok(()) } else { Err(Ended::Refused(unknown)) }
}

async fn apply(known: &Known, objects: &[Value]) -> Result<(), Ended> {
    for object in objects {
        known.api.apply(object).await.map_err(|error| Ended::Failed(error.to_string()))?;
    }
    Ok(())
}

/// Prints the changes, or makes them and says what was done.
async fn finish(known: &[Known], changes: Vec<Change>, generate: bool, form: Form) -> Result<ExitCode, Ended> {
    if generate {
        if form == Form::Json {
            let all = changes
                .iter()
                .map(|change| json!({"context": change.context, "apply": change.applied, "delete": change.deleted}));
            println!("{}", all.collect::<Value>());
            return Ok(ExitCode::SUCCESS);
        }
        for change in &changes {
            for (what, objects) in [("apply", &change.applied), ("delete", &change.deleted)] {
                if !objects.is_empty() {
                    print!("# kubectl --context {} {what} -f -\n{}", change.context, yaml(objects)?);
                }
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut done = Vec::new();
    for change in changes {
        let Some(at) = known.iter().find(|known| known.cluster.context == change.context) else { continue };
        for object in &change.deleted {
            if at.api.delete(object).await.map_err(|error| Ended::Failed(error.to_string()))? {
                done.push((change.context.clone(), "deleted", object.clone()));
            }
        }
        apply(at, &change.applied).await?;
        done.extend(change.applied.into_iter().map(|object| (change.context.clone(), "applied", object)));
    }
    let text = |object: &Value, pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let named =
        |object: &Value| (text(object, "/kind"), text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    if form == Form::Json {
        let all = done.iter().map(|(context, what, object)| {
            let (kind, namespace, name) = named(object);
            json!({"context": context, *what: {"kind": kind, "namespace": namespace, "name": name}})
        });
        println!("{}", all.collect::<Value>());
        return Ok(ExitCode::SUCCESS);
    }
    for (context, what, object) in done {
        let (kind, namespace, name) = named(&object);
        println!("{context}: {what} {kind} {namespace}{}{name}", if namespace.is_empty() { "" } else { "/" });
    }
    Ok(ExitCode::SUCCESS)
}
