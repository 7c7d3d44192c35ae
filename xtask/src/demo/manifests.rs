//! The guide's objects, the very files that users apply.

/// Namespace and name of the VirtualGateway.
pub const GATEWAY_NAME: &str = "istio-egress/egress-vg";

/// The gateway and who may use it: name of the file, and the manifest.
pub const GATEWAY: [(&str, &str); 3] = [
    (
        "virtualgateway.yaml",
        include_str!("../../../deploy/examples/guide/virtualgateway.yaml"),
    ),
    (
        "externalservice.yaml",
        include_str!("../../../deploy/examples/guide/externalservice.yaml"),
    ),
    (
        "accesspolicy.yaml",
        include_str!("../../../deploy/examples/guide/accesspolicy.yaml"),
    ),
];

/// File of the lockdown in the state directory.
pub const LOCKDOWN: &str = "lockdown.yaml";
pub const AUDIT: &str = include_str!("../../../deploy/examples/guide/lockdown-audit.yaml");
pub const ENFORCE: &str = include_str!("../../../deploy/examples/guide/lockdown-enforce.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lockdowns_differ_in_their_mode_only() {
        let parse = |text: &str| serde_yaml_ng::from_str::<serde_json::Value>(text).unwrap();
        let (mut audit, enforce) = (parse(AUDIT), parse(ENFORCE));
        assert_eq!(audit["spec"]["mode"], "Audit");
        audit["spec"]["mode"] = "Enforce".into();
        assert_eq!(audit, enforce);
    }

    #[test]
    fn the_name_is_the_gateways_own() {
        let gateway: serde_json::Value = serde_yaml_ng::from_str(GATEWAY[0].1).unwrap();
        let metadata = &gateway["metadata"];
        let text = |key: &str| metadata[key].as_str().unwrap();
        assert_eq!(
            format!("{}/{}", text("namespace"), text("name")),
            GATEWAY_NAME
        );
    }
}
