//! Several orders that the kernel takes together.

use netlink_packet_core::NetlinkBuffer;

use super::{Channel, HEADER, NLM_F_ACK, NLM_F_REQUEST, NetlinkError, retry};

/// One of several orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub kind: u16,
    /// `NLM_F_*` beside those of every order.
    pub flags: u16,
    /// Whether the kernel is to say that it was done.
    pub answered: bool,
    pub payload: Vec<u8>,
}

impl Channel {
    /// Sends all of them at once, and waits for the answer to the one that is `answered`; what is refused
    /// before it is told first. One must be.
    pub(crate) fn batch(
        &mut self,
        doing: &'static str,
        messages: &[Message],
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            let length = HEADER + message.payload.len();
            let start = bytes.len();
            bytes.resize(start + HEADER, 0);
            bytes.extend_from_slice(&message.payload);
            let answered = if message.answered { NLM_F_ACK } else { 0 };
            let mut header = NetlinkBuffer::new(&mut bytes[start..]);
            header.set_length(u32::try_from(length).expect("orders are short"));
            header.set_message_type(message.kind);
            header.set_flags(NLM_F_REQUEST | answered | message.flags);
            // One number for all of them: the first answer that is an error, or the last.
            header.set_sequence_number(self.sequence);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        retry(|| self.socket.send(&bytes, 0))
            .map_err(|source| NetlinkError::Io { doing, source })?;
        while !self.receive(doing, |_, _| {})? {}
        Ok(())
    }
}
