//! Attributes of `nf_tables`' objects as a tree: written for the kernel, and found again in what it lists.

use netlink_packet_core::NLA_F_NESTED;

use crate::netlink::{attribute, attributes, push_attribute};

/// `linux/netfilter/nf_tables.h`.
const NFTA_LIST_ELEM: u16 = 1;

/// What an attribute holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, which is in network byte order there.
    Word(u32),
    /// What a register holds, as it is.
    Raw([u8; 4]),
    /// What the kernel keeps for others.
    Bytes(Vec<u8>),
    Text(&'static str),
    Nest(Vec<(u16, Self)>),
    /// Several of one kind, in their order.
    List(Vec<Self>),
}

impl Value {
    fn is_nested(&self) -> bool {
        matches!(self, Self::Nest(_) | Self::List(_))
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Word(word) => word.to_be_bytes().to_vec(),
            Self::Raw(raw) => raw.to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Text(text) => [text.as_bytes(), b"\0"].concat(),
            Self::Nest(attributes) => write(attributes),
            Self::List(values) => {
                let mut bytes = Vec::new();
                for value in values {
                    push(&mut bytes, NFTA_LIST_ELEM, value);
                }
                bytes
            }
        }
    }

    /// Whether the kernel lists the same: what it tells beside, a newer one more than an older, is none of
    /// our business, but a list is as long as it should be.
    fn is_in(&self, found: &[u8]) -> bool {
        match self {
            Self::Word(_) | Self::Raw(_) | Self::Bytes(_) => found == self.bytes(),
            Self::Text(text) => found.strip_suffix(b"\0").unwrap_or(found) == text.as_bytes(),
            Self::Nest(attributes) => are_in(attributes, found, 0),
            Self::List(values) => {
                let found: Vec<&[u8]> = attributes(found, 0).map(|(_, value)| value).collect();
                found.len() == values.len()
                    && values.iter().zip(found).all(|(it, in_)| it.is_in(in_))
            }
        }
    }
}

/// The attributes as the kernel takes them.
pub fn write(attributes: &[(u16, Value)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in attributes {
        push(&mut bytes, *kind, value);
    }
    bytes
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &Value) {
    let nested = if value.is_nested() { NLA_F_NESTED } else { 0 };
    push_attribute(bytes, kind | nested, &value.bytes());
}

/// Whether each of these is in what the kernel lists, behind its fixed header of so many bytes.
pub fn are_in(wanted: &[(u16, Value)], found: &[u8], header: usize) -> bool {
    wanted.iter().all(|(kind, value)| {
        attribute(found, header, *kind).is_some_and(|found| value.is_in(found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again_and_nothing_else() {
        let tree = |word, list: usize| {
            vec![
                (1, Value::Text("table")),
                (2, Value::Nest(vec![(1, Value::Word(word))])),
                (3, Value::List(vec![Value::Raw([1, 2, 3, 4]); list])),
            ]
        };
        let mut bytes = write(&tree(7, 2));
        assert!(are_in(&tree(7, 2), &bytes, 0));
        assert!(!are_in(&tree(8, 2), &bytes, 0));
        assert!(!are_in(&tree(7, 1), &bytes, 0));
        assert!(!are_in(&tree(7, 3), &bytes, 0));
        // A newer kernel tells more.
        push_attribute(&mut bytes, 9, b"news");
        assert!(are_in(&tree(7, 2), &bytes, 0));
        assert!(!are_in(&[(4, Value::Word(0))], &bytes, 0));
        assert!(!are_in(&tree(7, 2), &bytes[..12], 0));
    }
}
