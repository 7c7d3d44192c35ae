//! Names of images.

use std::fmt;
use std::str::FromStr;

/// A whole name with a tag, such as `localhost/sallyport/agent:0.1.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    repository: String,
    tag: String,
}

/// What runtimes take for the registry of a name without one, so that they leave the name alone
/// and look nowhere else.
const LOCAL: &str = "localhost";

impl Reference {
    /// An image of this project at this version.
    pub fn own(name: &str) -> Self {
        Self {
            repository: format!("{LOCAL}/sallyport/{name}"),
            tag: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{why}; write it as registry/repository:tag");
        if text.contains('@') {
            return Err(bad("a digest can't be chosen: it follows from the content"));
        }
        // A colon before the last slash is that of a port.
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => return Err(bad("the tag is missing")),
        };
        let of_tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if tag.is_empty()
            || tag.len() > 128
            || !tag.chars().all(of_tag)
            || tag.starts_with(['.', '-'])
        {
            return Err(bad(
                "the tag has letters, digits, and `._-` inside, at most 128",
            ));
        }
        let of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let (first, rest) = repository.split_once('/').unwrap_or(("", repository));
        let host = first.contains(['.', ':']) || first == LOCAL;
        let parts = rest
            .split('/')
            .chain((!host && !first.is_empty()).then_some(first));
        for part in parts {
            let edge = |c: char| c.is_ascii_alphanumeric();
            if !part.starts_with(edge) || !part.ends_with(edge) || !part.chars().all(of_name) {
                return Err(bad(
                    "a repository has lower-case letters, digits, and `._-` inside",
                ));
            }
        }
        // As container runtimes complete short names differently, none is written.
        let repository = if host {
            repository.to_owned()
        } else {
            format!("{LOCAL}/{repository}")
        };
        Ok(Self {
            repository,
            tag: tag.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        for (text, whole) in [
            ("sallyport/agent:1", "localhost/sallyport/agent:1"),
            ("agent:1.0-rc.1", "localhost/agent:1.0-rc.1"),
            ("localhost/agent:1", "localhost/agent:1"),
            (
                "registry.example:5000/a/b:latest",
                "registry.example:5000/a/b:latest",
            ),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), whole);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "agent",
            ":1",
            "agent:",
            "Agent:1",
            "a//b:1",
            "a/-b:1",
            "a b:1",
            "registry.example:5000/agent",
            "agent:.1",
            "agent@sha256:00",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
