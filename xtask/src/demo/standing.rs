//! One inbound connection that stands through the whole story.

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::world::NODE_PORT;
use crate::node::http;
use crate::node::{Node, plan};

/// A connection of a client outside to reviews, through the node's port.
#[derive(Debug)]
pub struct Standing {
    stream: BufReader<TcpStream>,
    requests: u32,
}

impl Standing {
    pub fn open(node: &Node) -> Result<Self> {
        let address = SocketAddr::new(plan::NODE.v4.into(), NODE_PORT);
        let wait = Duration::from_secs(3);
        let stream = node
            .outside()
            .within(move || Ok(TcpStream::connect_timeout(&address, wait)?))
            .context("a client outside cannot connect to reviews")?;
        stream.set_read_timeout(Some(wait))?;
        Ok(Self {
            stream: BufReader::new(stream),
            requests: 0,
        })
    }

    /// One more request on it; gives how many there were.
    pub fn ask(&mut self) -> Result<u32> {
        http::write_request(&mut self.stream.get_mut(), "reviews", "/standing")?;
        let response = http::read(&mut self.stream)?.context("the connection was closed")?;
        if response.status() != Some(200) {
            bail!("the answer was {}", response.first);
        }
        self.requests += 1;
        Ok(self.requests)
    }
}
