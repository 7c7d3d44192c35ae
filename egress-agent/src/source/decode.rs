//! From the text of a file to objects. Pure.

use serde::Deserialize;

use super::error::SourceError;
use super::kinds::{Document, Failure, KINDS, known};
use crate::index::Object;

/// An object, and the line (from 1) on which its document begins.
#[derive(Clone, Debug)]
pub struct Located {
    pub object: Object,
    pub line: u32,
}

/// What is read of a document before its kind is known.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HeadMeta {
    name: Option<serde_yaml_ng::Value>,
    namespace: Option<serde_yaml_ng::Value>,
}

#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<serde_yaml_ng::Value>,
}

/// Reads the documents of a YAML or JSON text.
///
/// # Errors
/// The first thing wrong, with line, column and field; then none of the text is to be taken.
pub fn decode(text: &str) -> Result<Vec<Located>, SourceError> {
    let mut objects = Vec::new();
    for (line, document) in documents(text) {
        one(&document, line, &mut objects)?;
    }
    Ok(objects)
}

/// Splits at document markers. Each document keeps its place in the file by empty lines in front,
/// so that the parser's own line numbers are right.
fn documents(text: &str) -> Vec<(u32, String)> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut begin = 1;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t") || bare == "..." {
            documents.push((begin, std::mem::take(&mut current)));
            current = "\n".repeat(i);
            begin = i + 1;
            // What stands behind the marker (a comment, or all of the document) keeps its column.
            current.push_str("   ");
            current.push_str(&line[3..]);
        } else {
            current.push_str(line);
        }
    }
    documents.push((begin, current));
    documents.retain(|(_, document)| {
        document
            .lines()
            .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
    });
    let mut placed = Vec::with_capacity(documents.len());
    for (begin, document) in documents {
        let blank = |l: &&str| l.trim().is_empty() || l.trim_start().starts_with('#');
        let line = begin.max(document.lines().take_while(blank).count() + 1);
        placed.push((number(line), document));
    }
    placed
}

fn number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

fn one(text: &str, line: u32, objects: &mut Vec<Located>) -> Result<(), SourceError> {
    let head: Option<Head> =
        serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text))
            .map_err(|failure| explain(&failure, line, ""))?;
    let Some(head) = head else { return Ok(()) };
    if head.api_version.as_deref() == Some("v1") && head.kind.as_deref() == Some("List") {
        let list: List =
            serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text))
                .map_err(|failure| explain(&failure, line, ""))?;
        for (i, item) in list.items.into_iter().enumerate() {
            let at = format!("items[{i}]");
            let head: Head = serde_path_to_error::deserialize(item.clone())
                .map_err(|failure| explain(&failure, line, &at))?;
            objects.push(typed(&head, Document::Value(item), line, &at)?);
        }
        return Ok(());
    }
    objects.push(typed(&head, Document::Text(text), line, "")?);
    Ok(())
}

fn typed(head: &Head, document: Document<'_>, line: u32, at: &str) -> Result<Located, SourceError> {
    let error = |field: &str, reason: String| SourceError {
        line: Some(line),
        object: head.to_string(),
        field: join(at, field),
        reason,
        ..SourceError::default()
    };
    let Some(kind) = &head.kind else {
        return Err(error("kind", "is missing".into()));
    };
    let Some(version) = &head.api_version else {
        return Err(error("apiVersion", "is missing".into()));
    };
    let Some((.., make)) = KINDS.iter().find(|(v, k, _)| v == version && k == kind) else {
        let reason = format!(
            "`{kind}` of `{version}` is not read here; known are {}",
            known()
        );
        return Err(error("kind", reason));
    };
    let object = make(document).map_err(|failure| SourceError {
        object: head.to_string(),
        ..explain(&failure, line, at)
    })?;
    let meta = object.metadata();
    if meta.name.as_ref().is_none_or(String::is_empty) {
        return Err(error("metadata.name", "is missing".into()));
    }
    if !object.namespaced() && meta.namespace.is_some() {
        let reason = format!("{kind} is cluster-scoped; remove it");
        return Err(error("metadata.namespace", reason));
    }
    let mirror = meta
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key("kubernetes.io/config.hash"));
    if matches!(object, Object::Pod(_)) && !mirror && meta.uid.as_ref().is_none_or(String::is_empty)
    {
        let reason = "is missing: it is what tells a pod's cgroup from others";
        return Err(error("metadata.uid", reason.into()));
    }
    Ok(Located { object, line })
}

/// Serde's error with its place, which serde writes into the text, in fields of its own.
fn explain(failure: &Failure, line: u32, at: &str) -> SourceError {
    let inner = failure.inner();
    let location = inner.location();
    let path = match failure.path().to_string() {
        path if path == "." => String::new(),
        path => path,
    };
    let text = inner.to_string();
    let mut reason = text.as_str();
    if let Some(place) = &location {
        let suffix = format!(" at line {} column {}", place.line(), place.column());
        reason = reason.strip_suffix(suffix.as_str()).unwrap_or(reason);
    }
    reason = reason
        .strip_prefix(path.as_str())
        .unwrap_or(reason)
        .trim_start_matches(": ");
    let reason = reason.to_owned();
    SourceError {
        line: Some(location.as_ref().map_or(line, |at| number(at.line()))),
        column: location.as_ref().map(|at| number(at.column())),
        field: join(at, &path),
        reason,
        ..SourceError::default()
    }
}

fn join(at: &str, field: &str) -> String {
    match (at, field) {
        ("", field) => field.to_owned(),
        (at, "") => at.to_owned(),
        (at, field) => format!("{at}.{field}"),
    }
}

impl std::fmt::Display for Head {
    /// As much of `Kind/namespace/name` as is there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.as_deref().unwrap_or_default())?;
        for part in [&self.metadata.namespace, &self.metadata.name]
            .into_iter()
            .flatten()
        {
            if let Some(text) = part.as_str() {
                write!(f, "/{text}")?;
            }
        }
        Ok(())
    }
}
