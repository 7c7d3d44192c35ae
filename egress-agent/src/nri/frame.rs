//! Frames of the protocol: several connections over one socket, and ttrpc messages in each.
//!
//! A mux frame is the connection's number and a length (both 32 bits, big-endian) and that many
//! bytes of the connection. A ttrpc message is a length, a stream id (both 32 bits, big-endian), a
//! type, flags (a byte each) and that many bytes. Where a mux frame begins says nothing of where a
//! message does.

use std::collections::BTreeMap;

/// Connection on which the runtime calls the plugin.
pub(super) const PLUGIN: u32 = 1;
/// Connection on which the plugin calls the runtime.
pub(super) const RUNTIME: u32 = 2;

/// Message types of ttrpc.
pub(super) const REQUEST: u8 = 1;
pub(super) const RESPONSE: u8 = 2;

const MUX_HEADER: usize = 8;
const HEADER: usize = 10;
/// The longest message of ttrpc, without its header.
const LONGEST: usize = 4 << 20;
/// The longest mux frame that is sent: the runtime reads into a buffer of this size, and gives the
/// connection up when a frame doesn't fit.
pub(super) const LONGEST_SENT: usize = 4096 - HEADER;

/// One ttrpc message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// [`PLUGIN`] or [`RUNTIME`].
    pub(super) connection: u32,
    pub(super) stream: u32,
    pub(super) kind: u8,
    pub(super) data: Vec<u8>,
}

/// What no peer that speaks the protocol sends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame of {0} bytes: the peer does not speak NRI's protocol")]
    TooLong(usize),
}

/// Bytes from the socket to messages.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Not taken apart yet.
    raw: Vec<u8>,
    /// Bytes of each connection that make no whole message yet.
    connections: BTreeMap<u32, Vec<u8>>,
}

impl Reader {
    /// Takes what was read; gives the messages that are whole now, in their order.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
        self.raw.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some((header, rest)) = self.raw.split_first_chunk::<MUX_HEADER>() {
            let (connection, length) = (be(header, 0), be(header, 4) as usize);
            if length > LONGEST + HEADER {
                return Err(FrameError::TooLong(length));
            }
            let Some(payload) = rest.get(..length) else {
                break;
            };
            // Others are not in use.
            if matches!(connection, PLUGIN | RUNTIME) {
                let pending = self.connections.entry(connection).or_default();
                pending.extend_from_slice(payload);
                split(connection, pending, &mut messages)?;
            }
            self.raw.drain(..MUX_HEADER + length);
        }
        Ok(messages)
    }
}

fn split(
    connection: u32,
    pending: &mut Vec<u8>,
    messages: &mut Vec<Message>,
) -> Result<(), FrameError> {
    while let Some((header, rest)) = pending.split_first_chunk::<HEADER>() {
        let length = be(header, 0) as usize;
        if length > LONGEST {
            return Err(FrameError::TooLong(length));
        }
        let Some(data) = rest.get(..length) else {
            break;
        };
        messages.push(Message {
            connection,
            stream: be(header, 4),
            kind: header[8],
            data: data.to_vec(),
        });
        pending.drain(..HEADER + length);
    }
    Ok(())
}

/// A 32-bit number at this place, big-endian.
fn be(header: &[u8], at: usize) -> u32 {
    let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
    u32::from_be_bytes(bytes)
}

/// The message as one mux frame.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    let Message {
        connection,
        stream,
        kind,
        data,
    } = message;
    debug_assert!(data.len() <= LONGEST_SENT, "answers are short");
    let length = u32::try_from(data.len()).expect("it is short");
    let mut frame = Vec::with_capacity(MUX_HEADER + HEADER + data.len());
    frame.extend(connection.to_be_bytes());
    frame.extend((length + 10).to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend([*kind, 0]);
    frame.extend(data);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(connection: u32, stream: u32, data: &[u8]) -> Message {
        Message {
            connection,
            stream,
            kind: REQUEST,
            data: data.to_vec(),
        }
    }

    #[test]
    fn a_frame_is_as_the_protocol_has_it() {
        let bytes = encode(&message(RUNTIME, 3, b"ab"));
        let expected = [
            0, 0, 0, 2, 0, 0, 0, 12, // connection 2, 12 bytes
            0, 0, 0, 2, 0, 0, 0, 3, 1, 0, // 2 bytes, stream 3, request, no flags
            b'a', b'b',
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let sent = [
            message(PLUGIN, 1, b"one"),
            message(RUNTIME, 1, b""),
            message(PLUGIN, 3, &[7; 3000]),
        ];
        // The middle message of the plugin's connection is spread over two frames, between which one
        // of the other connection and one of an unknown connection come.
        let mut bytes = encode(&sent[0]);
        let long = encode(&sent[2]);
        let (head, tail) = long[MUX_HEADER..].split_at(1234);
        let frame = |connection: u32, part: &[u8]| {
            let length = u32::try_from(part.len()).unwrap().to_be_bytes();
            [&connection.to_be_bytes(), &length, part].concat()
        };
        bytes.extend(frame(PLUGIN, head));
        bytes.extend(encode(&sent[1]));
        bytes.extend(frame(77, b"who?"));
        bytes.extend(frame(PLUGIN, tail));
        for step in [1, 7, 100, bytes.len()] {
            let mut reader = Reader::default();
            let got: Vec<Message> = bytes
                .chunks(step)
                .flat_map(|chunk| reader.take(chunk).unwrap())
                .collect();
            assert_eq!(got, sent, "in steps of {step}");
        }
    }

    #[test]
    fn lengths_that_nobody_sends_end_it() {
        let mut reader = Reader::default();
        let http = reader.take(b"HTTP/1.1 400 Bad Request\r\n");
        assert!(matches!(http, Err(FrameError::TooLong(_))), "{http:?}");
        let mut inner = vec![0, 0, 0, 1, 0, 0, 0, 10];
        inner.extend([0x7f, 0, 0, 0, 0, 0, 0, 1, 1, 0]);
        let error = Reader::default().take(&inner).unwrap_err();
        assert_eq!(error, FrameError::TooLong(0x7f00_0000));
    }
}
