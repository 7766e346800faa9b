//! Plaintext that arrives for enrolled pods: policy without an identity, then delivery.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use tokio::net::TcpStream;

use super::{
    deliver::{Client, deliver},
    policy::{authorise, withdrawn},
    worker::{Pod, Worker, canonical},
};
use crate::{
    decide::InboundTarget,
    hbone::{ConnError, Leg, Walk},
    observe::{
        access_log::{Direction, Party, Record},
        counters::Counters,
    },
    state::PlaintextToMesh,
    tunnel::copy,
};

/// Serves one plaintext connection from accept to end.
pub async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, socket: TcpStream, from: SocketAddr) {
    let started = Instant::now();
    Counters::add(&worker.shared.counters.plaintext);
    let mut record = Record::new(Direction::Inbound);
    record.source.address = Some(from);
    let walk = Walk::default();
    let admitted = admit(&worker, &pod, &socket, from, &mut record).await;
    walk.done(Leg::Accept, started);
    let delivered = match admitted {
        Ok(target) => {
            let client = Client { address: from, identity: None, authority: None };
            let delivering = Instant::now();
            let delivered = deliver(&worker, &pod, &client, &target).await;
            walk.done(Leg::Backend, delivering);
            delivered
        }
        Err(error) => Err(error),
    };
    record.legs = walk.times();
    record.setup = started.elapsed();
    let error = match delivered {
        Ok(application) => {
            let to = record.destination.address.unwrap_or(from);
            let revoked = withdrawn(&worker, &pod, None, from, to);
            let open = worker.shared.connections.open(&mut record, false);
            let result = copy::socket_and_socket(socket, application, open.counts(), revoked).await;
            record.bytes = open.bytes();
            record.ended(result, Party::Client, from)
        }
        Err(error) => {
            let _ = socket.set_zero_linger();
            Some(error)
        }
    };
    worker.shared.log.finish(record, error, started.elapsed());
}

async fn admit(
    worker: &Worker,
    pod: &Pod,
    socket: &TcpStream,
    from: SocketAddr,
    record: &mut Record,
) -> Result<InboundTarget, ConnError> {
    let refused = |reason: String| ConnError::fatal(Leg::Accept, from, reason);
    let local = socket.local_addr().map(canonical).map_err(|error| refused(error.to_string()))?;
    record.destination.address = Some(local);
    let Some((model, workload)) = worker.workload(pod).await else {
        return Err(refused(format!("the workload {} is not in the mesh model", pod.uid)));
    };
    record.destination.workload = Some(workload.clone());
    if model.node.plaintext_to_mesh == PlaintextToMesh::Refuse {
        return Err(refused("plaintext to enrolled pods is refused here (plaintextToMesh: refuse)".to_owned()));
    }
    authorise(worker, pod, (model, workload), None, from, local).await.map_err(refused)?;
    Ok(InboundTarget { address: local.ip(), port: local.port(), service: None, proxy_header: false })
}
