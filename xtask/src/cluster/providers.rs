//! The same clusters where somebody already has a tool for them: the commands, printed or run.

use super::layout::{self, Shape};
use crate::{Result, sh};
use std::process::Command;

/// Who makes the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Provider {
    /// Namespaces of this machine, without a container engine
    #[default]
    Namespaces,
    /// Containers of Docker or Podman
    Kind,
    /// Virtual machines or containers
    Minikube,
    /// k3s in containers, by k3d
    K3s,
}

impl Provider {
    fn program(self) -> &'static str {
        match self {
            Provider::Namespaces => "ip",
            Provider::Kind => "kind",
            Provider::Minikube => "minikube",
            Provider::K3s => "k3d",
        }
    }

    /// The lines that make the clusters: all with the same pod and service ranges, their nodes on one network.
    fn lines(self, shape: Shape) -> Vec<String> {
        let (pods, services) = (layout::PODS, layout::SERVICES);
        let agents = shape.nodes.saturating_sub(1);
        let cluster = |name: &str| match self {
            Provider::Namespaces => Vec::new(),
            Provider::Kind => {
                let workers = "- role: worker\n".repeat(usize::from(agents));
                let config = format!(
                    "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking: {{podSubnet: {pods}, serviceSubnet: {services}, kubeProxyMode: {}}}\nnodes:\n- role: control-plane\n{workers}",
                    shape.proxy.name()
                );
                vec![format!("kind create cluster --name {name} --config - <<'END'\n{config}END")]
            }
            Provider::Minikube => vec![format!(
                "minikube start --profile {name} --nodes {} --network causeway --cni bridge --service-cluster-ip-range {services} --extra-config kubeadm.pod-network-cidr={pods} --extra-config kube-proxy.mode={}",
                shape.nodes,
                shape.proxy.name()
            )],
            Provider::K3s => vec![format!(
                "k3d cluster create {name} --agents {agents} --network causeway --k3s-arg '--disable=traefik,servicelb@server:*' --k3s-arg '--cluster-cidr={pods}@server:*' --k3s-arg '--service-cidr={services}@server:*' --k3s-arg '--kube-proxy-arg=proxy-mode={}@all:*'",
                shape.proxy.name()
            )],
        };
        shape.clusters().flat_map(|number| cluster(&number.name())).collect()
    }

    /// Prints the lines, or runs them one after the other.
    ///
    /// # Errors
    /// Without the tool, or if a line fails.
    pub fn up(self, shape: Shape, dry: bool) -> Result<()> {
        let program = self.program();
        let there = sh::has_program(program);
        if dry {
            println!("# {program} is {}installed here", if there { "" } else { "not " });
            self.lines(shape).iter().for_each(|line| println!("{line}"));
            return Ok(());
        }
        if !there {
            return Err(format!(
                "{program} is not installed; `--dry-run` prints what would be run, `--provider namespaces` needs no such tool"
            ));
        }
        for line in self.lines(shape) {
            sh::step(&line);
            let status = sh::foreground(Command::new("sh").args(["-ec", &line]))?;
            if !status.success() {
                return Err(format!("{program} failed: {status} (output above)"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Proxy, Shape};
    use super::Provider;

    #[test]
    fn every_provider_makes_every_cluster_with_the_same_ranges() {
        let shape = Shape { clusters: 2, nodes: 2, proxy: Proxy::Nftables };
        for provider in [Provider::Kind, Provider::Minikube, Provider::K3s] {
            let lines = provider.lines(shape);
            assert_eq!(lines.len(), 2, "{provider:?}");
            for (line, name) in lines.iter().zip(["cluster1", "cluster2"]) {
                for part in [name, "10.244.0.0/16", "10.96.0.0/16", "nftables"] {
                    assert!(line.contains(part), "{provider:?}: {part} is not in {line}");
                }
            }
        }
    }
}
