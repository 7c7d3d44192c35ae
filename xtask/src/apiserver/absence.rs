//! How an API server is away.

use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::sync::PoisonError;

use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

use super::ApiServer;

/// Each is known from real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Connections are taken, and broken at once: a load balancer without a server.
    Breaks,
    /// Nobody listens.
    Refuses,
    /// Connections are taken, and requests never answered.
    Silent,
    /// Everything is answered with 500: the server is there, and its database is not.
    Fails,
}

impl ApiServer {
    /// Breaks all connections and takes no others; or comes back.
    pub fn set_away(&self, away: bool) {
        self.set_absence(away.then_some(Absence::Breaks));
    }

    /// Is away like this from now on, or comes back. Connections that stand break.
    ///
    /// # Panics
    /// If the port can't be closed or opened again.
    pub fn set_absence(&self, absence: Option<Absence>) {
        let away = self.shared.away.lock();
        let mut away = away.unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *away, absence);
        drop(away);
        let refuses = |absence| absence == Some(Absence::Refuses);
        if refuses(before) && !refuses(absence) {
            open(&self.listener);
        }
        if refuses(absence) && !refuses(before) {
            close(&self.listener);
        }
        self.break_connections();
    }
}

/// The port stays bound if it was named and not drawn.
fn close(listener: &TcpListener) {
    shutdown(listener.as_raw_fd(), Shutdown::Both).expect("the port is closed");
}

fn open(listener: &TcpListener) {
    listen(listener, Backlog::MAXCONN).expect("the port is open again");
}
