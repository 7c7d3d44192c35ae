//! The pinned maps and how full they are.

use anyhow::Result;
use serde::Serialize;

use super::output::{Part, Table, View, values};
use crate::datapath::pinned::Pinned;

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapRow {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    /// Entries in use; none for arrays and rings.
    pub used: Option<u64>,
    /// Entries; for a ring bytes.
    pub max_entries: u32,
    /// Bytes; none if the kernel does not say.
    pub memory: Option<u64>,
}

/// All of them, by name.
pub fn read(pinned: &Pinned) -> Result<Vec<MapRow>> {
    let mut rows = Vec::new();
    for name in pinned.map_names()? {
        let facts = pinned.map_facts(&name)?;
        rows.push(MapRow {
            used: pinned.used(&name)?,
            name,
            kind: facts.kind,
            key_size: facts.key_size,
            value_size: facts.value_size,
            max_entries: facts.max_entries,
            memory: facts.memory,
        });
    }
    Ok(rows)
}

/// `maps list`.
pub fn list_view(rows: &[MapRow]) -> View {
    let mut table = Table::new(&[
        "NAME", "TYPE", "+KEY", "+VALUE", "USED", "MAX", "FILL", "MEMORY",
    ]);
    let text = |number: Option<u64>| number.map(|it| it.to_string()).unwrap_or_default();
    for row in rows {
        let most = u64::from(row.max_entries).max(1);
        table.row(vec![
            row.name.clone(),
            row.kind.clone(),
            row.key_size.to_string(),
            row.value_size.to_string(),
            text(row.used),
            row.max_entries.to_string(),
            row.used
                .map(|used| format!("{}%", used * 100 / most))
                .unwrap_or_default(),
            text(row.memory),
        ]);
    }
    View {
        kind: "MapList",
        items: values(rows),
        page: vec![Part::Table(table)],
    }
}
