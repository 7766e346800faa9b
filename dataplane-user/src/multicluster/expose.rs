//! The objects of a cluster's own entry point: a gateway that others reach, and that istiod does not deploy one of its own for.

use serde_json::{Value, json};

use super::facts::{Cluster, Kind};
use super::finding::Finding;
use super::names;

/// Stands for the services that clusters share, in the gateway's model.
const SHARED: &str = "global";

/// What an entry point is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of its network.
    pub network: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Where istiod is.
    pub istio_namespace: String,
    /// Name of istiod's service.
    pub istiod: String,
    /// Where the gateway is.
    pub namespace: String,
    /// Image of its pods; without one, pods with the label `app: causeway-gateway` come from somewhere else.
    pub image: Option<String>,
    /// How many pods.
    pub replicas: u32,
    /// Reached by a port of every node instead of a load balancer.
    pub node_port: bool,
    /// Services that others may reach, as `namespace/hostname`; `global` are those that clusters share.
    pub exports: Vec<String>,
    /// Others may reach istiod, too.
    pub pass_istiod: bool,
}

impl Exposure {
    /// For a cluster as it is.
    ///
    /// # Errors
    /// What has to be settled first.
    pub fn of(cluster: &Cluster, image: Option<String>, node_port: bool) -> Result<Self, Box<Finding>> {
        let Some(istiod) = cluster.istiod() else {
            return Err(Box::new(super::check::no_istiod(cluster)));
        };
        let image =
            image.or_else(|| cluster.agents().into_iter().map(|agent| agent.image).find(|image| is_ours(image)));
        Ok(Self {
            cluster: cluster.label(),
            network: cluster.network().to_owned(),
            trust_domain: cluster.trust_domain(),
            istio_namespace: cluster.istio_namespace.clone(),
            istiod: istiod.name,
            namespace: cluster.gateway_namespace.clone(),
            image,
            replicas: 2,
            node_port,
            exports: vec![SHARED.to_owned()],
            pass_istiod: false,
        })
    }

    /// All objects, in the order in which they can be made.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.namespace_object(), self.account()];
        if self.image.is_some() && self.follows() {
            objects.extend(self.rights());
        }
        if let Some(image) = &self.image {
            objects.extend([self.model(), self.deployment(image)]);
        }
        objects.push(self.service());
        if !self.node_port {
            objects.push(self.gateway());
        }
        objects
    }

    /// What must not be there beside them: behind a node port, a gateway object of the cluster itself would have peers dial port
    /// 15008 of its addresses.
    #[must_use]
    pub fn removed(&self, cluster: &Cluster) -> Vec<Value> {
        let there = cluster.named(Kind::Gateway, &self.namespace, names::GATEWAY).is_some();
        if self.node_port && there { vec![self.gateway()] } else { Vec::new() }
    }

    fn metadata(&self) -> Value {
        json!({"name": names::GATEWAY, "namespace": self.namespace, "labels": labels(&self.network)})
    }

    fn namespace_object(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
    }

    /// Whether the gateway has to ask the API which services clusters share.
    fn follows(&self) -> bool {
        self.exports.iter().any(|name| name == SHARED)
    }

    /// The right to see which services are labelled.
    fn rights(&self) -> [Value; 2] {
        let name = format!("{}-{}", names::GATEWAY, self.namespace);
        let metadata = json!({"name": name, "labels": labels(&self.network)});
        let (api, group) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
        [
            json!({"apiVersion": api, "kind": "ClusterRole", "metadata": metadata,
                "rules": [{"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]}]}),
            json!({"apiVersion": api, "kind": "ClusterRoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": names::GATEWAY, "namespace": self.namespace}]}),
        ]
    }

    fn account(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": self.metadata(),
            "automountServiceAccountToken": false})
    }

    fn identity(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, names::GATEWAY)
    }

    fn model(&self) -> Value {
        let mut role = json!({"listen": [format!("[::]:{}", names::HBONE_PORT)], "identity": self.identity()});
        if self.pass_istiod {
            let host = format!("{}.{}.svc", self.istiod, self.istio_namespace);
            let way = json!({"listen": format!("[::]:{}", names::ISTIOD_PORT), "to": format!("{host}:{}", names::ISTIOD_PORT),
                "hosts": [host, format!("{host}.cluster.local")]});
            merge(&mut role, "passthrough", &json!([way]));
        }
        let model = json!({"causeway": {
            "gateway": role,
            "exports": self.exports,
            // Where it is, the environment says.
            "controlPlane": {},
        }});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata(),
            "data": {"node.yaml": format!("{model:#}\n")}})
    }

    fn service(&self) -> Value {
        let mut ports = vec![("status-port", names::READY_PORT), ("hbone", names::HBONE_PORT)];
        ports.extend(self.pass_istiod.then_some(("tls-istiod", names::ISTIOD_PORT)));
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(name, port)| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"}))
            .collect();
        let mut metadata = self.metadata();
        merge(&mut metadata, "annotations", &json!({"networking.istio.io/traffic-distribution": "PreferClose"}));
        let mut spec = json!({
            "type": if self.node_port { "NodePort" } else { "LoadBalancer" },
            "selector": {"app": names::GATEWAY},
            "ports": ports,
        });
        if self.node_port {
            // Peers dial nodes with a gateway, and no node shall depend on another one's.
            merge(&mut spec, "externalTrafficPolicy", &json!("Local"));
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    }

    /// An address that names the service makes it a gateway that istiod does not deploy, with the service's addresses as its own.
    fn gateway(&self) -> Value {
        let host = format!("{}.{}.svc.cluster.local", names::GATEWAY, self.namespace);
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": self.metadata(), "spec": {
            "gatewayClassName": names::EAST_WEST,
            "addresses": [{"type": "Hostname", "value": host}],
            "listeners": [{
                "name": "hbone", "port": names::HBONE_PORT, "protocol": "HBONE",
                "tls": {"mode": "Terminate", "options": {"gateway.istio.io/tls-terminate-mode": "ISTIO_MUTUAL"}},
            }],
        }})
    }

    fn deployment(&self, image: &str) -> Value {
        let mut labels = labels(&self.network);
        for (key, value) in [("istio.io/dataplane-mode", "none"), ("sidecar.istio.io/inject", "false")] {
            if let Some(map) = labels.as_object_mut() {
                map.insert(key.to_owned(), json!(value));
            }
        }
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": self.metadata(), "spec": {
            "replicas": self.replicas,
            "selector": {"matchLabels": {"app": names::GATEWAY}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": self.pod(image)},
        }})
    }

    fn pod(&self, image: &str) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let istiod = format!("{}.{}.svc:{}", self.istiod, self.istio_namespace, names::ISTIOD_PORT);
        let env: Vec<Value> = [
            ("CLUSTER_ID", self.cluster.as_str()),
            ("NETWORK", &self.network),
            ("TRUST_DOMAIN", &self.trust_domain),
            ("XDS_ADDRESS", &istiod),
            ("CA_ADDRESS", &istiod),
        ]
        .map(|(name, value)| json!({"name": name, "value": value}))
        .into_iter()
        .chain([
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("NODE_NAME", "spec.nodeName"),
            field("INSTANCE_IP", "status.podIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ])
        .collect();
        let mounts =
            [("token", "/var/run/secrets/tokens"), ("roots", "/var/run/secrets/istio"), ("model", "/etc/causeway")]
                .map(|(name, path)| json!({"name": name, "mountPath": path, "readOnly": true}))
                .into_iter()
                .chain(
                    [("run", "/run/causeway"), ("tmp", "/tmp")]
                        .map(|(name, path)| json!({"name": name, "mountPath": path})),
                );
        let token =
            json!({"serviceAccountToken": {"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"}});
        // Entry points on several nodes: one node's end is not the network's.
        let spread = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": names::GATEWAY}}});
        let mut pod = json!({
            "serviceAccountName": names::GATEWAY,
            "terminationGracePeriodSeconds": 30,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "topologySpreadConstraints": [spread],
            "containers": [{
                "name": "causeway",
                "image": image,
                "args": ["node", "--model=/etc/causeway/node.yaml", "--instance=gateway"],
                "env": env,
                "ports": [
                    {"name": "hbone", "containerPort": names::HBONE_PORT, "protocol": "TCP"},
                    {"name": "http-monitoring", "containerPort": 15020, "protocol": "TCP"},
                    {"name": "readiness", "containerPort": names::READY_PORT, "protocol": "TCP"},
                ],
                "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": names::READY_PORT}, "periodSeconds": 2},
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "securityContext": {
                    "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumeMounts": mounts.collect::<Vec<Value>>(),
            }],
            "volumes": [
                {"name": "token", "projected": {"sources": [token]}},
                {"name": "roots", "configMap": {"name": "istio-ca-root-cert"}},
                {"name": "model", "configMap": {"name": names::GATEWAY}},
                {"name": "run", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
            ],
        });
        if self.follows() {
            merge(&mut pod, "automountServiceAccountToken", &json!(true));
        }
        pod
    }
}

/// Whether an image holds this program: the reference's agents cannot be gateways.
fn is_ours(image: &str) -> bool {
    image.contains("causeway")
}

fn labels(network: &str) -> Value {
    json!({"app": names::GATEWAY, names::NETWORK: network})
}

/// Puts an object under a key.
pub(super) fn merge(object: &mut Value, key: &str, value: &Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value.clone());
    }
}
