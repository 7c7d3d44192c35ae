//! Paths: the one form in which policy compares them, and the patterns of `allowedPaths`.
//!
//! The form is the one that Envoy's `normalize_path` and `merge_slashes` make, since Envoy's
//! RBAC filter compares it as a string.

use std::fmt;

/// Brings the path of a request to the form in which it is compared: without query, with
/// escapes of unreserved characters decoded, slashes merged and dot segments resolved.
/// None if the request must be refused: not a path, an escaped slash or backslash, a NUL.
pub fn normalize(target: &str) -> Option<String> {
    let path = target.split(['?', '#']).next().unwrap_or(target);
    if !path.starts_with('/') {
        return None;
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in decoded.split('/').skip(1) {
        directory = true;
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => {
                segments.push(name);
                directory = false;
            }
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if directory || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// Whether the gateway answers 400 whatever policy says: not a path, or one in which a server may
/// see slashes that policy does not.
pub fn is_refused(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or(target).to_ascii_lowercase();
    !path.starts_with('/') || ["%2f", "%5c", "%00"].iter().any(|escape| path.contains(escape))
}

/// Decodes `%41` and the like; other escapes stay as they are written.
fn decode_unreserved(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let escaped = bytes.get(at + 1..at + 3).and_then(|hex| {
                let text = std::str::from_utf8(hex).ok()?;
                if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return None;
                }
                u8::from_str_radix(text, 16).ok()
            })?;
            match escaped {
                // Whether a server splits there is anybody's guess, so nobody may ask.
                b'/' | b'\\' | 0 => return None,
                byte if is_unreserved(byte) => out.push(char::from(byte)),
                _ => out.push_str(path.get(at..at + 3)?),
            }
            at += 3;
            continue;
        }
        // Characters that a path may not hold (RFC 3986, section 3.3) are for a client to escape.
        if !is_path_byte(byte) {
            return None;
        }
        out.push(char::from(byte));
        at += 1;
    }
    Some(out)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
                | b':' | b'@'
        )
}

/// A value that is written exactly, as `prefix*`, as `*suffix`, or as `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Any,
}

impl TextPattern {
    /// None where a `*` stands elsewhere than at one end.
    pub fn parse(text: &str) -> Option<Self> {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text == "*" => return Some(Self::Any),
            (Some(_), Some(_)) => return None,
            (Some(rest), None) => Self::Suffix(rest.to_owned()),
            (None, Some(rest)) => Self::Prefix(rest.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        };
        (!pattern.text().contains('*')).then_some(pattern)
    }

    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Suffix(text) => value.ends_with(text.as_str()),
            Self::Any => true,
        }
    }

    /// The fixed part; empty for `*`.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
            Self::Any => "",
        }
    }
}

impl fmt::Display for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Reads one of `allowedPaths`. The error says what to write instead.
pub fn parse_path_pattern(text: &str) -> Result<TextPattern, String> {
    let pattern = TextPattern::parse(text)
        .ok_or_else(|| format!("`{text}`: a `*` may stand at one end only"))?;
    // Whatever comes before a suffix, the suffix itself must survive normalisation.
    let probe = match &pattern {
        TextPattern::Any => return Ok(pattern),
        TextPattern::Suffix(text) => format!("/x{text}"),
        TextPattern::Exact(text) | TextPattern::Prefix(text) => text.clone(),
    };
    match normalize(&probe) {
        Some(normal) if normal == probe => Ok(pattern),
        Some(normal) => Err(format!(
            "`{text}` never matches, since paths are compared as `{normal}`"
        )),
        None => Err(format!("`{text}` is not a path: it starts with `/` and has no `?`, `#` or escaped slash")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form() {
        for (given, expected) in [
            ("/", Some("/")),
            ("/get?x=/../y", Some("/get")),
            ("/get#x", Some("/get")),
            ("/a/../b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/../../b", Some("/b")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/..", Some("/")),
            ("//a///b//", Some("/a/b/")),
            ("/%61dmin", Some("/admin")),
            ("/a%20b", Some("/a%20b")),
            ("/a%2fb", None),
            ("/a%5Cb", None),
            ("/a\\b", None),
            ("/a%00", None),
            ("/a%", None),
            ("/a%zz", None),
            ("/a%+1", None),
            ("*", None),
            ("", None),
            ("a", None),
        ] {
            assert_eq!(normalize(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn patterns() {
        assert!(parse_path_pattern("/get").unwrap().matches("/get"));
        assert!(parse_path_pattern("/status/*").unwrap().matches("/status/200"));
        assert!(!parse_path_pattern("/status/*").unwrap().matches("/status"));
        assert!(parse_path_pattern("*.json").unwrap().matches("/a/b.json"));
        assert!(parse_path_pattern("*").unwrap().matches("/"));
        for text in ["", "get", "/a/*/b", "*a*", "/a/../b*", "//a", "/a?b", "/a%2fb", "/%61"] {
            assert!(parse_path_pattern(text).is_err(), "{text}");
        }
    }
}
