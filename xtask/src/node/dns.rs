//! A small DNS server over a fixed zone, and the question that the probe asks.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

/// Names (lower-case, without a last dot) and their addresses.
pub type Zone = BTreeMap<String, Vec<IpAddr>>;

const PORT: u16 = 53;
/// Seconds that an answer may be kept.
const TTL: u32 = 5;

/// Serves `zone` over UDP and TCP, both families, until the process ends.
pub(super) fn serve(zone: &Zone) -> Result<()> {
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let udp = UdpSocket::bind(everywhere).context("cannot listen for DNS over UDP")?;
    let tcp = TcpListener::bind(everywhere).context("cannot listen for DNS over TCP")?;
    let by_tcp = zone.clone();
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let zone = by_tcp.clone();
            thread::spawn(move || {
                if let Err(error) = serve_stream(stream, &zone) {
                    eprintln!("a question over TCP: {error:#}");
                }
            });
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = udp.recv_from(&mut buffer).context("cannot receive")?;
        match answer(zone, &buffer[..length]) {
            // The client may be gone; the next one is not.
            Ok(reply) => drop(udp.send_to(&reply, from)),
            Err(error) => eprintln!("a question from {from}: {error:#}"),
        }
    }
}

fn serve_stream(mut stream: TcpStream, zone: &Zone) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        stream.write_all(&framed(&answer(zone, &question)?)?)?;
    }
    Ok(())
}

/// A message with its length ahead, as over TCP (RFC 1035, 4.2.2).
fn framed(message: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(message.len()).context("a message of at most 65535 bytes")?;
    Ok([&length.to_be_bytes()[..], message].concat())
}

fn answer(zone: &Zone, question: &[u8]) -> Result<Vec<u8>> {
    let question = Packet::parse(question).context("not a DNS message")?;
    let mut reply = Packet::new_reply(question.id());
    reply.set_flags(PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER);
    if question.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    }
    let Some(asked) = question.questions.first() else {
        bail!("a message without a question")
    };
    reply.questions.push(asked.clone());
    match zone.get(&asked.qname.to_string().to_lowercase()) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(addresses) => {
            for address in addresses {
                let data = match (address, asked.qtype) {
                    (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A)) => RData::A(A {
                        address: (*v4).into(),
                    }),
                    (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA)) => RData::AAAA(AAAA {
                        address: (*v6).into(),
                    }),
                    _ => continue,
                };
                reply.answers.push(ResourceRecord::new(
                    asked.qname.clone(),
                    CLASS::IN,
                    TTL,
                    data,
                ));
            }
        }
    }
    reply.build_bytes_vec().context("cannot write an answer")
}

/// Asks for the IPv4 addresses of a name.
pub(super) fn ask(
    name: &str,
    server: SocketAddr,
    tcp: bool,
    wait: Duration,
) -> Result<Vec<IpAddr>> {
    const ID: u16 = 0x5a11;
    let mut packet = Packet::new_query(ID);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).context("not a name")?;
    packet.questions.push(Question::new(
        name,
        QTYPE::TYPE(TYPE::A),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    let question = packet
        .build_bytes_vec()
        .context("cannot write a question")?;
    let mut reply = vec![0; 4096];
    let length = if tcp {
        let mut stream = TcpStream::connect_timeout(&server, wait)?;
        stream.set_read_timeout(Some(wait))?;
        stream.write_all(&framed(&question)?)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        stream.read_exact(
            reply
                .get_mut(..length)
                .context("an answer of at most 4096 bytes")?,
        )?;
        length
    } else {
        let socket = UdpSocket::bind(super::probe::any(server))?;
        socket.set_read_timeout(Some(wait))?;
        socket.connect(server)?;
        socket.send(&question)?;
        socket.recv(&mut reply)?
    };
    let reply = Packet::parse(&reply[..length]).context("the answer is no DNS message")?;
    if reply.id() != ID || reply.rcode() != RCODE::NoError {
        bail!("the server answered {:?}", reply.rcode());
    }
    Ok(reply
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(std::net::Ipv4Addr::from(a.address).into()),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &'static str) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(
            name,
            QTYPE::TYPE(TYPE::AAAA),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn answers_the_asked_family_and_refuses_unknown_names() {
        let addresses = vec![
            "203.0.113.10".parse().unwrap(),
            "2001:db8:113::10".parse().unwrap(),
        ];
        let zone = Zone::from([("httpbin.org".to_owned(), addresses)]);
        let known = answer(&zone, &question("HTTPBIN.org")).unwrap();
        let known = Packet::parse(&known).unwrap();
        assert_eq!((known.id(), known.answers.len()), (7, 1));
        let unknown = answer(&zone, &question("httpbin.org.svc.cluster.local")).unwrap();
        assert_eq!(Packet::parse(&unknown).unwrap().rcode(), RCODE::NameError);
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(answer(&Zone::new(), &[1, 2, 3]).is_err());
    }
}
