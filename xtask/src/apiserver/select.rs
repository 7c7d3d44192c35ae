//! Label and field selectors of requests.

use serde_json::Value;

/// What of a collection a request is about.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub namespace: Option<String>,
    pub name: Option<String>,
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

/// A selector that can't be read, as the API server words it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unparsable(pub String);

impl Selection {
    /// # Errors
    /// If a selector can't be read, or a field is none that can be selected by.
    pub fn new(
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Unparsable> {
        let labels = terms(labels.unwrap_or_default())?;
        let fields = terms(fields.unwrap_or_default())?;
        for term in &fields {
            let (Term::Is(field, _)
            | Term::IsNot(field, _)
            | Term::Has(field)
            | Term::HasNot(field)) = term;
            let known = [
                "metadata.name",
                "metadata.namespace",
                "spec.nodeName",
                "status.phase",
            ];
            if !known.contains(&field.as_str()) {
                return Err(Unparsable(format!("field label not supported: {field}")));
            }
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: None,
            labels,
            fields,
        })
    }

    /// The only name that it selects, if there is only one.
    pub fn named(&self) -> Option<&str> {
        self.fields.iter().find_map(|term| match term {
            Term::Is(field, name) if field == "metadata.name" => Some(name.as_str()),
            _ => None,
        })
    }

    pub fn matches(&self, object: &Value) -> bool {
        let meta = &object["metadata"];
        let namespace = self.namespace.as_deref();
        namespace.is_none_or(|namespace| meta["namespace"] == namespace)
            && self.name.as_deref().is_none_or(|name| meta["name"] == name)
            && self
                .labels
                .iter()
                .all(|term| term.holds(|key| meta["labels"][key].as_str()))
            && self.fields.iter().all(|term| {
                // A field that is not there is as one that is empty.
                term.holds(|path| {
                    let value = path.split('.').fold(object, |value, part| &value[part]);
                    Some(value.as_str().unwrap_or_default())
                })
            })
    }
}

impl Term {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::IsNot(key, wanted) => value(key) != Some(wanted),
            Self::Has(key) => value(key).is_some(),
            Self::HasNot(key) => value(key).is_none(),
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, Unparsable> {
    let mut terms = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let split = |sign: &str| {
            let (key, value) = part.split_once(sign)?;
            Some((key.trim().to_owned(), value.trim().to_owned()))
        };
        let term = if let Some((key, value)) = split("!=") {
            Term::IsNot(key, value)
        } else if let Some((key, value)) = split("==").or_else(|| split("=")) {
            Term::Is(key, value)
        } else if let Some(key) = part.strip_prefix('!') {
            Term::HasNot(key.to_owned())
        } else {
            Term::Has(part.to_owned())
        };
        let (Term::Is(key, _) | Term::IsNot(key, _) | Term::Has(key) | Term::HasNot(key)) = &term;
        if key.is_empty() || key.contains([' ', '(', ')']) {
            return Err(Unparsable(format!("unable to parse requirement: {part}")));
        }
        terms.push(term);
    }
    Ok(terms)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_by_label_and_by_field() {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "n", "labels": { "app": "x" } },
            "spec": { "nodeName": "one" },
        });
        let matches = |labels, fields| {
            Selection::new(None, Some(labels), Some(fields))
                .unwrap()
                .matches(&pod)
        };
        assert!(matches("app=x", "spec.nodeName=one"));
        assert!(matches("app!=y,!other", "spec.nodeName!=two"));
        assert!(!matches("app=x,tier=y", ""));
        assert!(!matches("", "spec.nodeName!=one"));
        assert!(matches("other!=x", "status.phase!=Failed"));
        assert!(Selection::new(None, None, Some("spec.color=red")).is_err());
    }
}
