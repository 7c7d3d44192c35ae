//! That the chart says why: each value, right, capability and mount.

use std::fs;

use serde_json::Value;
use xtask::deploy::documents;

use super::WORKSPACE;

/// A line that says why: the one before, but for what is only for the template.
fn has_reason(lines: &[&str], at: usize) -> bool {
    let mut before = lines[..at].iter().rev().map(|line| line.trim());
    let before = before.find(|line| !line.starts_with("{{"));
    before.is_some_and(|line| line.starts_with('#'))
}

#[test]
fn rights_capabilities_and_mounts_have_their_reasons() {
    let folder = WORKSPACE.root.join("deploy/helm/sallyport/templates");
    for (file, after, item, least) in [
        ("rbac.yaml", "rules:", "- apiGroups:", 10),
        ("uninstall.yaml", "rules:", "- apiGroups:", 2),
        ("daemonset.yaml", "volumes:", "- name:", 7),
        ("_container.tpl", "volumeMounts:", "- ", 10),
    ] {
        let text = fs::read_to_string(folder.join(file)).expect("a template");
        let lines: Vec<&str> = text.lines().collect();
        let begin = lines.iter().position(|line| line.contains(after));
        let begin = begin.unwrap_or_else(|| panic!("{file}: no {after}"));
        let items = (begin..lines.len()).filter(|&at| lines[at].trim().starts_with(item));
        let (with, without): (Vec<usize>, Vec<usize>) =
            items.partition(|&at| has_reason(&lines, at));
        let without: Vec<&str> = without.into_iter().map(|at| lines[at]).collect();
        assert_eq!(without, [""; 0], "{file}: nothing says why");
        assert!(with.len() >= least, "{file}: {}", with.len());
    }
}

#[test]
fn every_value_is_explained_and_has_a_schema() {
    let folder = WORKSPACE.root.join("deploy/helm/sallyport");
    let text = fs::read_to_string(folder.join("values.yaml")).expect("values");
    // A comment is about what follows it without an empty line, and all that is in it.
    let (mut explained, mut above) = (false, Vec::<(usize, bool)>::new());
    let mut values = 0;
    for line in text.lines() {
        let (indent, line) = (line.len() - line.trim_start().len(), line.trim());
        if line.is_empty() {
            explained = false;
        } else if line.starts_with('#') {
            explained = true;
        } else if let Some((_, value)) = line.split_once(':').filter(|_| !line.starts_with('-')) {
            above.retain(|(outer, _)| *outer < indent);
            let told = explained || above.iter().any(|(_, told)| *told);
            let inner = value.is_empty();
            assert!(told || inner, "nothing explains {line}");
            if inner {
                above.push((indent, told));
            }
            values += usize::from(!inner);
        }
    }
    assert!(values > 50, "{values} values");
    let values = documents(&text).expect("YAML").remove(0);
    let schema = fs::read_to_string(folder.join("values.schema.json")).expect("a schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let mut missing = Vec::new();
    without_schema(&values, &schema, "", &mut missing);
    assert_eq!(missing, [""; 0], "not in the schema");
}

/// Values that the schema has nothing to say about.
fn without_schema(values: &Value, schema: &Value, path: &str, missing: &mut Vec<String>) {
    let (Some(values), Some(known)) = (values.as_object(), schema["properties"].as_object()) else {
        return;
    };
    for (key, value) in values {
        let path = format!("{path}.{key}");
        match known.get(key) {
            Some(schema) => without_schema(value, schema, &path, missing),
            None => missing.push(path),
        }
    }
}
