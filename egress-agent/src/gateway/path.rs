//! Paths: the one form in which policy compares them, and the patterns of `allowedPaths`.
//!
//! The form is the one that Envoy's `normalize_path` and `merge_slashes` make, since Envoy's
//! RBAC filter compares it as a string.

use std::fmt::{self, Write};

/// Whether the gateway answers 400 whatever policy says: not a path, one with a fragment, or one in
/// which a server may see slashes that policy does not.
pub fn is_refused(target: &str) -> bool {
    let path = target
        .split('?')
        .next()
        .unwrap_or(target)
        .to_ascii_lowercase();
    !path.starts_with('/')
        || target.contains('#')
        || ["%2f", "%5c", "%00"]
            .iter()
            .any(|escape| path.contains(escape))
}

/// Whether it depends on the reader where a path leads: `/a//../b` is `/a/b` for one that merges
/// slashes after it has resolved dot segments, and `/b` for one that does so before. No path that
/// was brought to its form is like that.
pub fn has_two_readings(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or(target);
    let unescaped = path
        .replace(['\\'], "/")
        .replace("%2e", ".")
        .replace("%2E", ".");
    let mut empty = false;
    // The first is what stands before the leading slash.
    unescaped.split('/').skip(1).any(|segment| {
        empty |= segment.is_empty();
        let name = segment.split(';').next().unwrap_or(segment);
        empty && name == ".."
    })
}

/// Brings the path of a request to the form in which it is compared: without query, escapes of
/// unreserved characters decoded, other odd characters escaped, slashes merged and dot segments
/// resolved. None if it has no such form; then no condition on paths holds.
pub fn normalize(target: &str) -> Option<String> {
    if is_refused(target) {
        return None;
    }
    let path = target.split('?').next().unwrap_or(target);
    // Envoy takes a dot segment with parameters (`..;x`) for a dot segment, if neither an escape nor a backslash hides it.
    let plain: Vec<&str> = path
        .split('/')
        .map(|segment| match segment.split_once(';') {
            Some((dots @ ("." | ".."), _)) => dots,
            _ => segment,
        })
        .collect();
    let spelled = respell(&plain.join("/"))?;
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in spelled.split('/').skip(1) {
        directory = true;
        match segment {
            "." => {}
            // Slashes are merged only afterwards: `/a//..` is `/a/`.
            ".." => _ = segments.pop(),
            "" => segments.push(segment),
            // Something hid it from Envoy; servers that ignore parameters would see a dot segment.
            name if name.starts_with("..;") || name.starts_with(".;") => return None,
            name => {
                segments.push(name);
                directory = false;
            }
        }
    }
    let mut out = String::with_capacity(spelled.len());
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        out.push('/');
        out.push_str(segment);
    }
    if directory || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// As [`normalize`], for a path that a gateway has brought to that form already: a dot segment with
/// parameters that is still there was hidden from it.
pub fn normalize_again(target: &str) -> Option<String> {
    let path = target.split('?').next().unwrap_or(target);
    let hidden = |segment: &str| segment.starts_with("..;") || segment.starts_with(".;");
    if path.split('/').any(hidden) {
        return None;
    }
    normalize(target)
}

/// Decodes `%41` and the like and escapes what must be; other escapes stay as they are written.
fn respell(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'%' => match bytes.get(at..at + 2).and_then(unescape) {
                Some(byte) if is_unreserved(byte) => {
                    out.push(char::from(byte));
                    at += 2;
                }
                _ => out.push('%'),
            },
            // Browsers and Envoy read it so.
            b'\\' => out.push('/'),
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                write!(out, "%{byte:02X}").ok()?;
            }
            byte if byte.is_ascii_graphic() => out.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(out)
}

fn unescape(hex: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = hex else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
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
        None => Err(format!(
            "`{text}` is not a path: it starts with `/` and has no `?`, `#` or escaped slash"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gateway_left_of_a_dot_segment_was_hidden_from_it() {
        assert_eq!(normalize("/x/..;/b").as_deref(), Some("/b"));
        assert_eq!(normalize_again("/x/..;/b"), None);
        assert_eq!(normalize_again("/x/.;y/b?z"), None);
        assert_eq!(normalize_again("/x/b;y").as_deref(), Some("/x/b;y"));
    }

    #[test]
    fn one_form() {
        for (given, expected) in [
            ("/", Some("/")),
            ("/get?x=/../y", Some("/get")),
            ("/get#x", None),
            ("/get?x=%2f", Some("/get")),
            ("/a/..;/b", Some("/b")),
            ("/a/.;x/b", Some("/a/b")),
            ("/a/%2e.;/b", None),
            ("/a/%2e;x/b", None),
            ("/a/b;x", Some("/a/b;x")),
            ("/{a}", Some("/%7Ba%7D")),
            ("/[a]", Some("/[a]")),
            ("/é", None),
            ("/a/../b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/../../b", Some("/b")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/..", Some("/")),
            ("/a//../b", Some("/a/b")),
            ("/a//b/../../c", Some("/a/c")),
            ("//../b", Some("/b")),
            ("/a//..", Some("/a/")),
            ("//a///b//", Some("/a/b/")),
            ("/%61dmin", Some("/admin")),
            ("/a%20b", Some("/a%20b")),
            ("/a%2fb", None),
            ("/a%5Cb", None),
            ("/a\\..\\b", Some("/b")),
            ("/a%00", None),
            ("/a%", Some("/a%")),
            ("/a%zz", Some("/a%zz")),
            ("/a%+1", Some("/a%+1")),
            ("/a%4", Some("/a%4")),
            ("*", None),
            ("", None),
            ("a", None),
        ] {
            assert_eq!(normalize(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn two_readings() {
        for (path, expected) in [
            ("/a//../b", true),
            ("/a//x/%2E./b", true),
            ("/a\\\\..;x/b", true),
            ("//../b", true),
            ("/a/../b", false),
            ("/a/..//b", false),
            ("/a//b", false),
            ("/a//b?/../", false),
            ("/a//...", false),
        ] {
            assert_eq!(has_two_readings(path), expected, "{path}");
        }
    }

    #[test]
    fn patterns() {
        assert!(parse_path_pattern("/get").unwrap().matches("/get"));
        assert!(
            parse_path_pattern("/status/*")
                .unwrap()
                .matches("/status/200")
        );
        assert!(!parse_path_pattern("/status/*").unwrap().matches("/status"));
        assert!(parse_path_pattern("*.json").unwrap().matches("/a/b.json"));
        assert!(parse_path_pattern("*").unwrap().matches("/"));
        for text in [
            "", "get", "/a/*/b", "*a*", "/a/../b*", "//a", "/a?b", "/a%2fb", "/%61",
        ] {
            assert!(parse_path_pattern(text).is_err(), "{text}");
        }
    }
}
