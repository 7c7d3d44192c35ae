//! A client of the policy server over bare HTTP/2: it can send what no proper client would.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What a call came to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of gRPC; 0 is good.
    pub status: i32,
    pub message: Bytes,
}

impl Answer {
    /// The verdict of a `Check`: a status of gRPC, 0 for allowed.
    pub fn verdict(&self) -> i32 {
        assert_eq!(self.status, 0, "the call failed");
        let response = CheckResponse::decode(self.message.clone()).expect("a response");
        response.status.expect("a status").code
    }
}

/// Connects from an address of loopback.
pub async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub async fn shake(stream: TcpStream, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    // What stands in it is not looked at: the server proves a SPIFFE ID.
    let name = ServerName::try_from("policy.sallyport").expect("a name");
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// A connection; its calls may overlap.
#[derive(Clone)]
pub struct Client {
    pub send: SendRequest<Bytes>,
}

impl Client {
    pub async fn new(stream: TlsStream<TcpStream>) -> Result<Self, h2::Error> {
        let mut settings = Builder::new();
        // Many short answers that wait for a busy client are no attack on it.
        settings.data_frame_budget(1 << 30);
        Self::with(stream, &settings).await
    }

    pub async fn with(stream: TlsStream<TcpStream>, settings: &Builder) -> Result<Self, h2::Error> {
        let (send, connection) = settings.handshake(stream).await?;
        tokio::spawn(async move {
            // Its end shows in the calls.
            let _ = connection.await;
        });
        Ok(Self { send })
    }

    pub async fn check(&self, request: &CheckRequest) -> Result<Answer, h2::Error> {
        self.call(CHECK, frame(&request.encode_to_vec())).await
    }

    /// Sends a body as it is.
    pub async fn call(&self, path: &str, body: Bytes) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(head(path), false)?;
        // Sends no more than the server has room for.
        let mut rest = body;
        while !rest.is_empty() {
            stream.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
            let Some(room) = room.transpose()? else {
                // The server has answered already.
                break;
            };
            let part = rest.split_to(room.min(rest.len()));
            let ended = rest.is_empty();
            if stream.send_data(part, ended).is_err() || ended {
                break;
            }
        }
        let response = response.await?;
        let early = status(response.headers());
        let (trailers, body) = read(response.into_body()).await?;
        let status = early.or(trailers).unwrap_or(2);
        let message = if body.len() >= 5 {
            body.slice(5..)
        } else {
            Bytes::new()
        };
        Ok(Answer { status, message })
    }
}

/// The five bytes before each message of gRPC.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a short message"));
    framed.put_slice(message);
    framed.freeze()
}

pub fn head(path: &str) -> http::Request<()> {
    http::Request::post(format!("https://policy.sallyport{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request")
}

fn status(headers: &http::HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

async fn read(mut body: RecvStream) -> Result<(Option<i32>, Bytes), h2::Error> {
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.remaining());
                whole.extend_from_slice(&data);
            }
            // A server that has answered early wants no more of the request.
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => break,
            Err(error) => return Err(error),
        }
    }
    let trailers = body.trailers().await?;
    Ok((trailers.as_ref().and_then(status), whole.freeze()))
}
