//! WIRE 4.3: every way in which one side ends, what the other side sees of it, and what the copy says.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{future::pending, io::ErrorKind, time::Duration};

use h2::RecvStream;
use http::{Method, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{AbortHandle, LocalSet, spawn_local},
};

use super::{super::settings, *};

/// One stream, seen from both of its ends, and the tasks that move the frames of its tunnel.
struct Stream {
    client: (SendStream, RecvStream),
    server: (SendStream, RecvStream),
    tunnel: [AbortHandle; 2],
    finish: tokio::sync::oneshot::Sender<()>,
}

async fn stream() -> Stream {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (client, server) =
        tokio::join!(settings::client().handshake::<_, Bytes>(near), settings::server().handshake::<_, Bytes>(far));
    let ((mut requests, connection), mut server) = (client.unwrap(), server.unwrap());
    let client = spawn_local(async move { drop(connection.await) });
    let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap();
    let (answer, send) = requests.send_request(request, false).unwrap();
    let (request, mut respond) = server.accept().await.unwrap().unwrap();
    let answered = respond.send_response(Response::new(()), false).unwrap();
    let (finish, finished) = tokio::sync::oneshot::channel();
    let server = spawn_local(async move {
        tokio::select! {
            _ = server.accept() => {}
            // A GOAWAY, and frames no more.
            _ = finished => {
                server.graceful_shutdown();
                let _ = tokio::time::timeout(Duration::from_millis(50), server.accept()).await;
            }
        }
    });
    let receive = answer.await.unwrap().into_body();
    let tunnel = [client.abort_handle(), server.abort_handle()];
    Stream { client: (send, receive), server: (answered, request.into_body()), tunnel, finish }
}

/// A connected pair: the application's socket, and ours.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (application, listener.accept().await.unwrap().0)
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), future).await.expect("the test hangs")
    })
}

/// Copies between our socket and one end of a stream.
fn copying(socket: TcpStream, (send, receive): (SendStream, RecvStream), role: Role) -> Copying {
    spawn_local(async move { socket_and_stream(socket, send, receive, &Counts::default(), role, pending()).await })
}

type Copying = tokio::task::JoinHandle<Result<(), CopyError>>;

/// How the application's connection ends for it: the error, or none for an orderly end.
async fn end(application: &mut TcpStream) -> Option<ErrorKind> {
    application.read_to_end(&mut Vec::new()).await.err().map(|error| error.kind())
}

#[test]
fn a_reset_of_the_application_is_a_cancel_of_the_client_and_a_connect_error_of_the_server() {
    run(async {
        for (role, reason) in [(Role::Client, Reason::CANCEL), (Role::Server, Reason::CONNECT_ERROR)] {
            let Stream { client, server, .. } = stream().await;
            let (ours, mut theirs) = if role == Role::Client { (client, server) } else { (server, client) };
            let (application, socket) = sockets().await;
            let copy = copying(socket, ours, role);
            application.set_zero_linger().unwrap();
            drop(application);
            let seen = theirs.1.data().await.unwrap().unwrap_err();
            assert_eq!((seen.is_reset(), seen.reason()), (true, Some(reason)), "{role:?}");
            let said = copy.await.unwrap();
            assert!(matches!(said, Err(CopyError::Reset(Side::Near))), "{role:?}: {said:?}");
        }
    });
}

#[test]
fn each_reset_of_the_stream_is_an_end_or_a_reset_for_the_application() {
    /// What the copy says.
    #[derive(Debug, PartialEq)]
    enum Said {
        Nothing,
        Reset,
        GivenUp,
    }
    let rows = [
        (Reason::NO_ERROR, None, Said::Nothing),
        (Reason::CANCEL, Some(ErrorKind::ConnectionReset), Said::Reset),
        (Reason::CONNECT_ERROR, Some(ErrorKind::ConnectionReset), Said::Reset),
        (Reason::STREAM_CLOSED, Some(ErrorKind::ConnectionReset), Said::Reset),
        (Reason::INTERNAL_ERROR, Some(ErrorKind::ConnectionReset), Said::GivenUp),
        (Reason::REFUSED_STREAM, Some(ErrorKind::ConnectionReset), Said::GivenUp),
    ];
    run(async {
        for (reason, seen, said) in rows {
            let mut stream = stream().await;
            let (mut application, socket) = sockets().await;
            let copy = copying(socket, stream.client, Role::Client);
            stream.server.0.send_data(Bytes::from_static(b"data"), false).unwrap();
            let mut data = [0; 4];
            application.read_exact(&mut data).await.unwrap();
            stream.server.0.send_reset(reason);
            assert_eq!(end(&mut application).await, seen, "{reason}");
            drop(application);
            let result = match copy.await.unwrap() {
                Ok(()) => Said::Nothing,
                Err(CopyError::Reset(Side::Far)) => Said::Reset,
                Err(CopyError::Stream(given)) if given == reason => Said::GivenUp,
                Err(other) => panic!("{reason}: {other:?}"),
            };
            assert_eq!(result, said, "{reason}");
        }
    });
}

#[test]
fn a_reset_is_told_from_a_lost_tunnel_also_while_the_application_sends() {
    run(async {
        for reset in [true, false] {
            let Stream { client, server, tunnel, finish: _finish } = stream().await;
            let (mut application, socket) = sockets().await;
            let copy = copying(socket, client, Role::Client);
            let sending = spawn_local(async move { while application.write_all(&[7; 4096]).await.is_ok() {} });
            let (mut send, mut receive) = server;
            receive.data().await.unwrap().unwrap();
            if reset {
                send.send_reset(Reason::CONNECT_ERROR);
            } else {
                tunnel.iter().for_each(AbortHandle::abort);
            }
            let said = copy.await.unwrap();
            match reset {
                true => assert!(matches!(said, Err(CopyError::Reset(Side::Far))), "{said:?}"),
                false => assert!(matches!(said, Err(CopyError::Lost(_))), "{said:?}"),
            }
            sending.await.unwrap();
        }
    });
}

#[test]
fn a_tunnel_that_ends_in_order_with_streams_open_resets_them() {
    run(async {
        let Stream { client, server, finish, .. } = stream().await;
        let (mut application, socket) = sockets().await;
        let copy = copying(socket, client, Role::Client);
        finish.send(()).unwrap();
        assert_eq!(end(&mut application).await, Some(ErrorKind::ConnectionReset));
        let said = copy.await.unwrap();
        assert!(matches!(said, Err(CopyError::Lost(_))), "{said:?}");
        drop(server);
    });
}

#[test]
fn between_two_sockets_a_reset_has_the_side_it_came_from() {
    run(async {
        for side in [Side::Near, Side::Far] {
            let ((near, from_near), (far, from_far)) = (sockets().await, sockets().await);
            let copy =
                spawn_local(async move { socket_and_socket(from_near, from_far, &Counts::default(), pending()).await });
            let (resets, mut stays) = if side == Side::Near { (near, far) } else { (far, near) };
            resets.set_zero_linger().unwrap();
            drop(resets);
            assert_eq!(end(&mut stays).await, Some(ErrorKind::ConnectionReset), "{side:?}");
            let said = copy.await.unwrap();
            assert!(matches!(said, Err(CopyError::Reset(seen)) if seen == side), "{side:?}: {said:?}");
        }
    });
}
