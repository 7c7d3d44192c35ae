//! As much of protobuf's encoding as NRI's messages need.

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

pub(super) fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

/// A string, bytes, or a message.
pub(super) fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// An entry of a map from string to string.
pub(super) fn entry(out: &mut Vec<u8>, field: u64, key: &str, value: &str) {
    let mut pair = Vec::new();
    bytes(&mut pair, 1, key.as_bytes());
    bytes(&mut pair, 2, value.as_bytes());
    bytes(out, field, &pair);
}

/// The fields of a message, in their order; none if it is not one.
pub(super) fn fields(mut rest: &[u8]) -> Option<Vec<(u64, Value)>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = take(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Number(take(&mut rest)?),
            2 => {
                let length = usize::try_from(take(&mut rest)?).ok()?;
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                Value::Bytes(value.to_vec())
            }
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The first string, bytes or message of this number; empty if there is none.
pub(super) fn bytes_of(fields: &[(u64, Value)], field: u64) -> Vec<u8> {
    let found = fields.iter().find_map(|(number, value)| match value {
        Value::Bytes(bytes) if *number == field => Some(bytes.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

pub(super) fn text_of(fields: &[(u64, Value)], field: u64) -> String {
    String::from_utf8_lossy(&bytes_of(fields, field)).into_owned()
}

/// The first number of this field; 0 if there is none.
pub(super) fn number_of(fields: &[(u64, Value)], field: u64) -> u64 {
    let found = fields.iter().find_map(|(number, value)| match value {
        Value::Number(it) if *number == field => Some(*it),
        _ => None,
    });
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        number(&mut message, 5, 300);
        bytes(&mut message, 1, b"web");
        assert_eq!(message, [0x28, 0xac, 2, 0x0a, 3, b'w', b'e', b'b']);
        let fields = fields(&message).expect("a message");
        assert_eq!(number_of(&fields, 5), 300);
        assert_eq!(text_of(&fields, 1), "web");
        assert_eq!(text_of(&fields, 2), "");
        assert_eq!(super::fields(&message[..6]), None, "it is cut off");
    }
}
