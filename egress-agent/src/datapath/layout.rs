//! Layouts of maps: how they are written down beside the pins, and how what is in a map of one
//! becomes what is in a map of another.

use std::fmt::Write as _;
use std::sync::LazyLock;

use egress_common::maps::schema::{self, SCHEMAS};
use sha2::{Digest as _, Sha256};

/// Directory of all layouts below the bpffs.
pub const DIRECTORY: &str = "sallyport";

/// A link in it whose target is the directory of the agent that ran last.
pub const OWNER: &str = "owner";

/// Where this version pins, below [`DIRECTORY`]: two versions with the same maps share it.
pub static OWN: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for schema in SCHEMAS {
        hash.update(format!("{} {}\n", schema.name, write(schema)));
    }
    let digest = hash.finalize();
    let mut name = "layout-".to_owned();
    for byte in &digest[..4] {
        let _ = write!(name, "{byte:02x}");
    }
    name
});

/// The layout of one map in words: `hash 2048 key ifindex:0:4 value slot:0:4,policy:4:4`.
pub fn write(map: &schema::Schema) -> String {
    let fields = |fields: &[schema::Field]| {
        let words = fields
            .iter()
            .map(|field| format!("{}:{}:{}", field.name, field.offset, field.size));
        words.collect::<Vec<_>>().join(",")
    };
    format!(
        "{} {} key {} value {}",
        map.kind,
        map.entries,
        fields(map.key),
        fields(map.value)
    )
}

/// How this version writes down the layout of a map.
pub fn own(map: &str) -> Option<String> {
    SCHEMAS.iter().find(|schema| schema.name == map).map(write)
}

/// A field of a key or value, as an agent of any version has written it down.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
}

/// The fields of a map's key and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    key: Vec<Field>,
    value: Vec<Field>,
}

impl Fields {
    /// Reads what [`write`] writes; none if it is something else.
    pub fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [_, _, "key", key, "value", value] = words[..] else {
            return None;
        };
        Some(Self {
            key: read_fields(key)?,
            value: read_fields(value)?,
        })
    }
}

fn read_fields(text: &str) -> Option<Vec<Field>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let field = |text: &str| {
        let mut parts = text.split(':');
        let name = parts.next()?.to_owned();
        let (offset, size) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts
            .next()
            .is_none()
            .then_some(Field { name, offset, size })
    };
    text.split(',').map(field).collect()
}

/// How elements of one map become elements of another: fields of the same name keep their content,
/// cut or filled up with zeros; new ones are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    key: Vec<Move>,
    value: Vec<Move>,
}

/// Bytes that go from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
    len: usize,
}

impl Conversion {
    /// None if the keys have nothing in common.
    pub fn between(from: &Fields, to: &Fields) -> Option<Self> {
        let conversion = Self {
            key: moves(&from.key, &to.key),
            value: moves(&from.value, &to.value),
        };
        (!conversion.key.is_empty()).then_some(conversion)
    }

    pub fn key(&self, from: &[u8], size: usize) -> Vec<u8> {
        convert(&self.key, from, size)
    }

    pub fn value(&self, from: &[u8], size: usize) -> Vec<u8> {
        convert(&self.value, from, size)
    }
}

fn moves(from: &[Field], to: &[Field]) -> Vec<Move> {
    let find = |field: &Field| from.iter().find(|it| it.name == field.name);
    to.iter()
        .filter_map(|field| {
            let source = find(field)?;
            Some(Move {
                from: source.offset,
                to: field.offset,
                len: source.size.min(field.size),
            })
        })
        .collect()
}

fn convert(moves: &[Move], from: &[u8], size: usize) -> Vec<u8> {
    let mut to = vec![0; size];
    for Move {
        from: at,
        to: place,
        len,
    } in moves
    {
        // Sizes are the kernel's, offsets were read: what doesn't fit stays zero.
        let source = from.get(*at..at.saturating_add(*len));
        let target = to.get_mut(*place..place.saturating_add(*len));
        if let (Some(source), Some(target)) = (source, target) {
            target.copy_from_slice(source);
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for schema in SCHEMAS {
            let text = write(schema);
            let fields = Fields::read(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(fields.key.len(), schema.key.len(), "{text}");
            assert_eq!(fields.value.len(), schema.value.len(), "{text}");
            // A link's target, which the kernel takes up to 4095 bytes of.
            assert!(text.len() < 2048, "{text}");
        }
        assert_eq!(Fields::read("hash 4 key a:0 value b:0:4"), None);
        assert_eq!(Fields::read("something else"), None);
    }

    #[test]
    fn fields_move_by_their_names() {
        let old = Fields::read("hash 8 key slot:0:4 value a:0:4,b:4:2,gone:6:2").unwrap();
        let new = Fields::read("hash 8 key slot:0:4 value b:0:4,new:4:4,a:8:4").unwrap();
        let there = Conversion::between(&old, &new).unwrap();
        let value = [1, 2, 3, 4, 5, 6, 7, 8];
        let moved = there.value(&value, 12);
        assert_eq!(moved, [5, 6, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        let back = Conversion::between(&new, &old).unwrap();
        assert_eq!(back.value(&moved, 8), [1, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(there.key(&[9, 0, 0, 0], 4), [9, 0, 0, 0]);
        // Words of another version that point beyond the value lead nowhere.
        let broken = Fields::read("hash 8 key slot:0:4 value a:90000:4").unwrap();
        let nowhere = Conversion::between(&broken, &new).unwrap();
        assert_eq!(nowhere.value(&value, 12), [0; 12]);
        let other = Fields::read("hash 8 key name:0:4 value a:0:4").unwrap();
        assert_eq!(Conversion::between(&other, &new), None);
    }
}
