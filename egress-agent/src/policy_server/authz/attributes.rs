//! What a gateway tells of a request or connection.

use std::borrow::Cow;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};

use crate::gateway::access::HeaderLines;
use crate::gateway::envoy::UPSTREAM;

/// A question, borrowed from the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Address of the gateway's pod, and the port that it listens on.
    pub gateway: (IpAddr, u16),
    /// Name in the client's certificate; empty without one.
    pub principal: &'a str,
    /// Address of the connection to the gateway.
    pub client: IpAddr,
    /// Server name that the gateway's TLS was asked for; empty where it is not told.
    pub sni: &'a str,
    /// None for a connection (the network filter).
    pub http: Option<Http<'a>>,
    /// Cluster to which the gateway would pass it on, where the gateway was configured to tell.
    pub upstream: Option<&'a str>,
}

/// The request in a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http<'a> {
    pub authority: &'a str,
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Names in lower case, without pseudo-headers.
    pub headers: Vec<(&'a str, Cow<'a, str>)>,
    pub lines: HeaderLines,
}

/// Reads a question.
///
/// # Errors
/// What it lacks, for the gateway's operator.
pub fn read(request: &CheckRequest) -> Result<Asked<'_>, &'static str> {
    let attributes = request
        .attributes
        .as_ref()
        .ok_or("the request has no attributes")?;
    let source = attributes
        .source
        .as_ref()
        .ok_or("the request has no source")?;
    let destination = attributes
        .destination
        .as_ref()
        .ok_or("the request has no destination")?;
    let (client, _) = address(source).ok_or("source.address is no IP address and port")?;
    let gateway = address(destination).ok_or("destination.address is no IP address and port")?;
    let http = attributes
        .request
        .as_ref()
        .and_then(|request| request.http.as_ref());
    Ok(Asked {
        gateway,
        principal: &source.principal,
        client,
        sni: attributes
            .tls_session
            .as_ref()
            .map_or("", |session| session.sni.as_str()),
        http: http.map(read_http).transpose()?,
        upstream: attributes
            .context_extensions
            .get(UPSTREAM)
            .map(String::as_str),
    })
}

fn read_http(http: &HttpRequest) -> Result<Http<'_>, &'static str> {
    if http.host.is_empty() || http.method.is_empty() {
        return Err("request.http has no host or no method");
    }
    Ok(Http {
        authority: &http.host,
        method: &http.method,
        path: &http.path,
        headers: headers(http),
        lines: if http.header_map.is_some() {
            HeaderLines::Apart
        } else {
            HeaderLines::Joined
        },
    })
}

/// From `header_map` where the gateway sends that (each line of a header for itself), else from
/// `headers` (lines of one name joined by commas). Bytes that are no UTF-8 match nothing that a
/// policy can name, and are no reason to refuse a request whose headers don't matter.
fn headers(http: &HttpRequest) -> Vec<(&str, Cow<'_, str>)> {
    let real = |name: &str| !name.starts_with(':');
    match &http.header_map {
        Some(map) => {
            let lines = map.headers.iter().filter(|header| real(&header.key));
            lines
                .map(|header| {
                    let value = if header.raw_value.is_empty() {
                        Cow::Borrowed(header.value.as_str())
                    } else {
                        String::from_utf8_lossy(&header.raw_value)
                    };
                    (header.key.as_str(), value)
                })
                .collect()
        }
        None => http
            .headers
            .iter()
            .filter(|(name, _)| real(name))
            .map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str())))
            .collect(),
    }
}

/// `::ffff:10.0.0.1` is 10.0.0.1.
fn address(peer: &Peer) -> Option<(IpAddr, u16)> {
    let Address::SocketAddress(socket) = peer.address.as_ref()?.address.as_ref()? else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return None;
    };
    let ip: IpAddr = socket.address.parse().ok()?;
    Some((ip.to_canonical(), u16::try_from(port).ok()?))
}
