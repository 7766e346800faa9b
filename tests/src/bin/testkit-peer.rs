//! Servers and clients for the pods of tests, demo and benchmark.

use clap::{Parser, Subcommand};
use std::net::SocketAddr;
use std::process::ExitCode;
use testkit::peer::{block_on, client, measure, relay, serve};

#[derive(Parser)]
#[command(about, long_about = None)]
enum Cli {
    /// Serve connections in one of several manners, for ever
    Serve {
        /// The manner
        kind: serve::Kind,
        /// The port, on both families
        #[arg(long)]
        port: u16,
    },
    /// Relay redirected connections to where they were going
    Relay {
        /// The port that the rules redirect to
        #[arg(long)]
        port: u16,
        /// The mark that the rules let pass
        #[arg(long)]
        mark: u32,
    },
    #[command(flatten)]
    Client(Client),
}

#[derive(Subcommand)]
enum Client {
    /// A checked pattern both ways at once
    Duplex { to: SocketAddr, bytes: u64 },
    /// Close the sending side first
    HalfClose { to: SocketAddr },
    /// Send only after the server has closed its sending side
    LateSender { to: SocketAddr },
    /// Wait for the server's greeting
    Greeted { to: SocketAddr },
    /// End with RST
    SendReset { to: SocketAddr },
    /// Say how the server ends the connection
    HowItEnds { to: SocketAddr },
    /// Many connections, idle until standard input closes
    Idle { to: SocketAddr, count: usize },
    /// Send a text again and again until standard input closes, reconnecting after failures
    Load { to: SocketAddr, text: String },
    /// Throughput of one stream
    Stream {
        to: SocketAddr,
        seconds: f64,
        #[arg(long)]
        bytes: Option<u64>,
    },
    /// Round trips on several connections
    PingPong { to: SocketAddr, connections: usize, seconds: f64 },
    /// New connections
    Connections {
        to: SocketAddr,
        parallel: usize,
        seconds: f64,
        #[arg(long)]
        count: Option<u64>,
        /// Connections begun per second
        #[arg(long)]
        rate: Option<f64>,
    },
    /// The time connect takes
    ConnectCost { to: SocketAddr, count: usize },
}

fn main() -> ExitCode {
    // Tens of thousands of connections are asked for; a lower hard limit shows itself as an error of the client.
    let _ = testkit::sys::raise_open_files(200_000);
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testkit-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> testkit::Result<()> {
    let client = match cli {
        Cli::Serve { kind, port } => return block_on(serve::run(kind, port)),
        Cli::Relay { port, mark } => return relay::run(port, mark),
        Cli::Client(client) => client,
    };
    match client {
        Client::Duplex { to, bytes } => block_on(client::duplex(to, bytes)),
        Client::HalfClose { to } => block_on(client::half_close(to)),
        Client::LateSender { to } => block_on(client::late_sender(to)),
        Client::Greeted { to } => block_on(client::greeted(to)),
        Client::SendReset { to } => block_on(client::send_reset(to)),
        Client::HowItEnds { to } => block_on(client::how_it_ends(to)),
        Client::Idle { to, count } => block_on(client::idle(to, count)),
        Client::Load { to, text } => block_on(client::load(to, &text)),
        Client::Stream { to, seconds, bytes } => block_on(measure::stream(to, seconds, bytes)),
        Client::PingPong { to, connections, seconds } => block_on(measure::ping_pong(to, connections, seconds)),
        Client::Connections { to, parallel, seconds, count, rate } => {
            block_on(measure::connections(to, parallel, seconds, count, rate))
        }
        Client::ConnectCost { to, count } => measure::connect_cost(to, count),
    }
}
