//! Bytes of a container runtime, cut anywhere.

use prost::Message as _;

use super::frame::{self, LONGEST_SENT, Reader};
use super::message as nri;

/// They make the same messages however they are cut, each of which is what it is when it is sent.
pub(crate) fn run(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = Reader::default().take(bytes);
    let mut reader = Reader::default();
    let mut pieces = Vec::new();
    let mut failed = None;
    for piece in bytes.chunks(usize::from(*cut).max(1)) {
        match reader.take(piece) {
            Ok(messages) => pieces.extend(messages),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    match whole {
        Ok(messages) => {
            assert_eq!(failed, None);
            assert_eq!(messages, pieces);
        }
        Err(error) => assert_eq!(failed, Some(error)),
    }
    for message in pieces {
        if message.data.len() <= LONGEST_SENT {
            let again = Reader::default().take(&frame::encode(&message));
            assert_eq!(again.as_deref(), Ok(&[message.clone()][..]));
        }
        if let Ok(request) = nri::Request::decode(&*message.data) {
            sandboxes(&request.payload);
        }
    }
}

/// What names no pod is none.
fn sandboxes(payload: &[u8]) {
    let list = nri::SynchronizeRequest::decode(payload).map(|it| it.pods);
    let one = nri::PodRequest::decode(payload).map(|it| it.pod);
    let change = nri::StateChangeEvent::decode(payload).map(|it| it.pod);
    let _ = nri::ConfigureRequest::decode(payload);
    let pods = list.unwrap_or_default().into_iter();
    for pod in pods.chain(one.ok().flatten()).chain(change.ok().flatten()) {
        let named = !pod.id.is_empty() && !pod.uid.is_empty() && !pod.namespace.is_empty();
        assert_eq!(pod.sandbox().is_some(), named);
    }
}
