//! How things are written: aligned tables for people, versioned JSON or YAML for programs.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// Version of the JSON and YAML. Fields may be added under it, never changed or removed.
pub const API_VERSION: &str = "sallyport.dev/ctl/v1";

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Table,
    /// The same with more columns
    Wide,
    /// One object with apiVersion, kind and items
    Json,
    /// The same as YAML
    Yaml,
}

/// What a command found, ready to be written in any format.
#[derive(Clone, Debug)]
pub struct View {
    /// Kind of the object, such as `PodList`.
    pub kind: &'static str,
    /// The items, sorted.
    pub items: Vec<Value>,
    /// For people: parts of a page, each with an empty line between.
    pub page: Vec<Part>,
}

/// Part of a page.
#[derive(Clone, Debug)]
pub enum Part {
    /// Lines as they are.
    Text(String),
    Table(Table),
}

/// Rows under columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Column {
    title: &'static str,
    /// Only in the wide format.
    wide: bool,
}

impl Table {
    /// A title that begins with `+` is only shown in the wide format.
    pub fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| {
            let wide = title.strip_prefix('+');
            Column {
                title: wide.unwrap_or(title),
                wide: wide.is_some(),
            }
        };
        Self {
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it has a cell for every column, wide ones too.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for every column");
        self.rows.push(cells);
    }

    /// The aligned text. Empty cells are `-`, and control characters that a name may bring along
    /// don't reach the terminal.
    pub fn render(&self, wide: bool, headers: bool) -> String {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|index| wide || !self.columns[*index].wide)
            .collect();
        let mut lines: Vec<Vec<String>> = Vec::new();
        if headers {
            let titles = shown.iter().map(|index| self.columns[*index].title);
            lines.push(titles.map(str::to_owned).collect());
        }
        for row in &self.rows {
            lines.push(shown.iter().map(|index| clean(&row[*index])).collect());
        }
        let widths: Vec<usize> = (0..shown.len())
            .map(|column| {
                let widths = lines.iter().map(|line| line[column].chars().count());
                widths.max().unwrap_or(0)
            })
            .collect();
        align(&lines, &widths)
    }

    /// The rows in columns of these widths, for all columns in the order they were named.
    pub fn render_fixed(&self, wide: bool, widths: &[usize]) -> String {
        let shown = |index: &usize| wide || !self.columns[*index].wide;
        let indices: Vec<usize> = (0..self.columns.len()).filter(shown).collect();
        let rows = self.rows.iter();
        let lines: Vec<Vec<String>> = rows
            .map(|row| indices.iter().map(|index| clean(&row[*index])).collect())
            .collect();
        let widths: Vec<usize> = indices.iter().map(|index| widths[*index]).collect();
        align(&lines, &widths)
    }
}

fn align(lines: &[Vec<String>], widths: &[usize]) -> String {
    let mut text = String::new();
    for line in lines {
        let mut written = String::new();
        for (cell, width) in line.iter().zip(widths) {
            // Writing to a string can't fail.
            let _ = write!(written, "{cell:<width$}  ");
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

fn clean(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    let plain = |character: char| {
        if character.is_control() {
            '\u{fffd}'
        } else {
            character
        }
    };
    cell.chars().map(plain).collect()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [Value],
}

/// The whole text, with the newline at its end.
pub fn render(view: &View, format: Format, no_headers: bool) -> Result<String> {
    let envelope = Envelope {
        api_version: API_VERSION,
        kind: view.kind,
        items: &view.items,
    };
    match format {
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&envelope).context("can't write JSON")?;
            text.push('\n');
            Ok(text)
        }
        Format::Yaml => serde_yaml_ng::to_string(&envelope).context("can't write YAML"),
        Format::Table | Format::Wide => {
            let parts = view.page.iter().map(|part| match part {
                Part::Text(text) => format!("{}\n", text.trim_end()),
                Part::Table(table) => table.render(format == Format::Wide, !no_headers),
            });
            Ok(parts.collect::<Vec<_>>().join("\n"))
        }
    }
}

/// Items of any type as JSON.
pub fn values<T: Serialize>(items: &[T]) -> Vec<Value> {
    items
        .iter()
        .map(|item| serde_json::to_value(item).expect("plain data with text keys is JSON"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_wide_ones_left_out() {
        let mut table = Table::new(&["NAME", "+MORE", "LAST"]);
        table.row(vec!["a-long-name".into(), "m".into(), "x".into()]);
        table.row(vec!["b".into(), String::new(), "\x1b[31m".into()]);
        assert_eq!(
            table.render(false, true),
            "NAME         LAST\na-long-name  x\nb            \u{fffd}[31m\n"
        );
        assert_eq!(
            table.render(true, false),
            "a-long-name  m  x\nb            -  \u{fffd}[31m\n"
        );
    }
}
