//! Values of the chart.

use serde_json::{Value, json};

use super::CERTS;

/// Repository, tag and digest of an image's name; what is not there is empty.
pub fn split_reference(reference: &str) -> (String, String, String) {
    let (name, digest) = reference.split_once('@').unwrap_or((reference, ""));
    // A colon before the last slash is a registry's port.
    let at = name.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match name[at..].split_once(':') {
        Some((last, tag)) => (format!("{}{last}", &name[..at]), tag),
        None => (name.to_owned(), ""),
    };
    (repository, tag.to_owned(), digest.to_owned())
}

/// What the suite installs with; `more` is merged over it, as `helm --values` does.
pub fn chart_values(image: &str, pull_policy: &str, authz: &str, more: &Value) -> Value {
    let (repository, tag, digest) = split_reference(image);
    let mut values = json!({
        "image": {
            "repository": repository, "tag": tag, "digest": digest, "pullPolicy": pull_policy,
        },
        "policyServer": {
            "enabled": true,
            "gateways": {
                "certDir": CERTS, "upstreamCA": format!("{CERTS}/outside.crt"), "authz": authz,
            },
        },
        "updateStrategy": { "rollingUpdate": { "maxUnavailable": "100%" } },
    });
    merge(&mut values, more);
    values
}

/// Objects are merged, everything else is replaced.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, more) => *into = more.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_name_has_up_to_three_parts() {
        let split = |text| {
            let (repository, tag, digest) = split_reference(text);
            format!("{repository} {tag} {digest}")
        };
        assert_eq!(split("sallyport/agent"), "sallyport/agent  ");
        assert_eq!(split("localhost:5000/a/b:1.2"), "localhost:5000/a/b 1.2 ");
        assert_eq!(split("localhost:5000/a"), "localhost:5000/a  ");
        assert_eq!(split("a:1@sha256:ab"), "a 1 sha256:ab");
    }

    #[test]
    fn given_values_go_over_the_suites_own() {
        let more = json!({ "podCIDRs": ["10.0.0.0/8"], "policyServer": { "port": 1 } });
        let values = chart_values("a:1", "Never", "rbac", &more);
        assert_eq!(values["policyServer"]["port"], 1);
        assert_eq!(values["policyServer"]["enabled"], true);
        assert_eq!(values["podCIDRs"][0], "10.0.0.0/8");
        let same = chart_values("a:1", "Never", "rbac", &Value::Null);
        assert_eq!(same["image"]["pullPolicy"], "Never");
    }
}
