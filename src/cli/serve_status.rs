//! `kmsfs serve-status`: how all mounts of this user are doing, for whoever asks on this machine.

use super::{Exit, Failure};
use crate::daemon::host;
use crate::http::{Address, Server};
use clap::Args;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Serves how mounts are doing; nothing can be changed by it.
#[derive(Args)]
pub struct ServeStatus {
    /// Where: unix:PATH, 127.0.0.1:PORT or `[::1]:PORT`; nothing that another machine could reach
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9180")]
    listen: Address,
}

pub fn run(arguments: &ServeStatus) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Failure, format!("{} cannot be served: {error}", arguments.listen))
            .hint("another process may serve there: choose another address with --listen")
    };
    let server = Server::bind(&arguments.listen).map_err(failed)?;
    eprintln!("serving {}", server.address());
    server.serve(Arc::new(host::answer), ended()).map_err(failed)
}

/// Comes back when the process is told to end.
async fn ended() {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Then it ends as the system does it.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => (),
        _ = interrupt.recv() => (),
    }
}
