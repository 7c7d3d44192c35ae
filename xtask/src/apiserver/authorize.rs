//! Who may do what, by objects of RBAC as the real API server reads them.

use serde_json::Value;

use super::resources::Resource;

/// Rules, each with the namespace that it is for; none is all of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Authorizer {
    rules: Vec<(Option<String>, Value)>,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub verb: &'a str,
    pub resource: &'a Resource,
    pub subresource: Option<&'a str>,
    pub namespace: Option<&'a str>,
    /// Of one object, or of a list that selects it by its name.
    pub name: Option<&'a str>,
}

impl Authorizer {
    /// What the bindings among these objects give to whomever they name: there is one user.
    pub fn new(objects: &[Value]) -> Self {
        let mut rules = Vec::new();
        for binding in objects {
            let namespace = match binding["kind"].as_str() {
                Some("ClusterRoleBinding") => None,
                Some("RoleBinding") => binding["metadata"]["namespace"].as_str(),
                _ => continue,
            };
            let role = &binding["roleRef"];
            let of = objects.iter().filter(|object| {
                let meta = &object["metadata"];
                object["kind"] == role["kind"]
                    && meta["name"] == role["name"]
                    && (role["kind"] == "ClusterRole" || meta["namespace"].as_str() == namespace)
            });
            let of = of.filter_map(|role| role["rules"].as_array()).flatten();
            rules.extend(of.map(|rule| (namespace.map(str::to_owned), rule.clone())));
        }
        Self { rules }
    }

    pub fn allows(&self, wish: Wish<'_>) -> bool {
        let resource = match wish.subresource {
            Some(sub) => format!("{}/{sub}", wish.resource.plural),
            None => wish.resource.plural.clone(),
        };
        self.rules.iter().any(|(namespace, rule)| {
            let has = |field: &str, value: &str| {
                let values = rule[field].as_array().into_iter().flatten();
                values
                    .filter_map(Value::as_str)
                    .any(|it| it == value || it == "*")
            };
            // A rule that names objects says nothing of those whose name isn't known.
            let named = match rule["resourceNames"].as_array().map(Vec::as_slice) {
                None | Some([]) => true,
                Some(names) => names.iter().any(|name| name.as_str() == wish.name),
            };
            (namespace.is_none() || namespace.as_deref() == wish.namespace)
                && has("verbs", wish.verb)
                && has("apiGroups", &wish.resource.group)
                && has("resources", &resource)
                && named
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn authorizer() -> Authorizer {
        let bound = |kind: &str, role: &str, namespace: &str| {
            json!({ "kind": kind, "metadata": { "name": "b", "namespace": namespace },
                "roleRef": { "kind": role, "name": "r" } })
        };
        Authorizer::new(&[
            json!({ "kind": "ClusterRole", "metadata": { "name": "r" }, "rules": [
                { "apiGroups": ["sallyport.dev"], "resources": ["egresslockdowns/status"],
                  "verbs": ["patch"] },
                { "apiGroups": [""], "resources": ["nodes"], "resourceNames": ["a"],
                  "verbs": ["list", "create"] },
            ] }),
            json!({ "kind": "Role", "metadata": { "name": "r", "namespace": "n" }, "rules": [
                { "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] } ] }),
            json!({ "kind": "ClusterRole", "metadata": { "name": "unbound" }, "rules": [
                { "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] } ] }),
            bound("ClusterRoleBinding", "ClusterRole", ""),
            bound("RoleBinding", "Role", "n"),
        ])
    }

    #[test]
    fn rules_hold_for_what_they_name_and_where_they_are_bound() {
        let resource = |group: &str, plural: &str| Resource {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            kind: String::new(),
            namespaced: true,
        };
        let (locks, nodes) = (
            resource("sallyport.dev", "egresslockdowns"),
            resource("", "nodes"),
        );
        let pods = resource("", "pods");
        let may = |verb, resource, subresource, namespace, name| {
            let wish = Wish {
                verb,
                resource,
                subresource,
                namespace,
                name,
            };
            authorizer().allows(wish)
        };
        assert!(may("patch", &locks, Some("status"), None, Some("x")));
        assert!(!may("patch", &locks, None, None, Some("x")));
        assert!(!may("get", &locks, Some("status"), None, Some("x")));
        assert!(may("list", &nodes, None, None, Some("a")));
        assert!(!may("list", &nodes, None, None, Some("b")));
        assert!(!may("list", &nodes, None, None, None), "all of them");
        assert!(may("get", &pods, None, Some("n"), Some("x")));
        assert!(!may("get", &pods, None, Some("m"), Some("x")));
        assert!(!may("get", &pods, None, None, Some("x")));
    }
}
