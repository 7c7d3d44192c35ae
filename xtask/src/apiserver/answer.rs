//! From a request to who answers it.

use std::io::{self, Write};
use std::net::TcpStream;
use std::thread::sleep;

use serde_json::{Value, json};

use super::authorize::Wish;
use super::faults::Fault;
use super::http::{Request, Response};
use super::resources::Resource;
use super::select::Selection;
use super::{Shared, State, list, watch, write};

/// What a request is about.
#[derive(Debug)]
pub(super) struct Target {
    pub resource: Resource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// Only metadata is wanted.
    pub partial: bool,
    pub selection: Selection,
    /// Names the request among others, for faults.
    pub place: String,
}

impl Target {
    /// As RBAC names it.
    pub fn rbac(resource: &Resource) -> String {
        if resource.group.is_empty() {
            resource.plural.clone()
        } else {
            format!("{}.{}", resource.plural, resource.group)
        }
    }

    /// The object as it is sent.
    pub fn shown(&self, object: &Value) -> Value {
        if self.partial {
            json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            })
        } else {
            let mut object = object.clone();
            object["apiVersion"] = json!(self.resource.api_version());
            object
        }
    }
}

/// Answers; whether the connection can go on.
pub(super) fn answer(
    stream: &mut TcpStream,
    shared: &Shared,
    request: &Request,
) -> io::Result<bool> {
    let target = match target(shared, request) {
        Ok(Some(target)) => target,
        Ok(None) => {
            let response = discovery(shared, &request.path);
            stream.write_all(&response.bytes())?;
            return Ok(true);
        }
        Err(response) => {
            stream.write_all(&response.bytes())?;
            return Ok(true);
        }
    };
    let watches = request.flag("watch");
    let verb = match (request.method.as_str(), &target.name) {
        ("GET", _) if watches => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "unknown",
    };
    let place = format!("{verb} {}", target.place);
    let (refusal, delay) = {
        let mut state = shared.state();
        let name = Target::rbac(&target.resource);
        let forbidden = state.forbidden.contains(&name) || !may(&mut state, verb, request, &target);
        state.asked.push((verb, name.clone()));
        let delay = state.dice.delay(&place);
        let refusal = if forbidden {
            let message = format!(
                "{name} is forbidden: User \"agent\" cannot {verb} resource \"{}\" in API group \"{}\" at the cluster scope",
                target.resource.plural, target.resource.group
            );
            Some(Response::failure(403, "Forbidden", &message))
        } else if state.dice.roll(Fault::TooManyRequests, &place) {
            let mut response = Response::failure(429, "TooManyRequests", "too many requests");
            response.retry_after = Some(1);
            response.body["details"] = json!({ "retryAfterSeconds": 1 });
            Some(response)
        } else if state.dice.roll(Fault::Internal, &place) {
            Some(Response::failure(
                500,
                "InternalError",
                "etcdserver: leader changed",
            ))
        } else if state.dice.roll(Fault::Unavailable, &place) {
            Some(Response::failure(
                503,
                "ServiceUnavailable",
                "apiserver is starting",
            ))
        } else {
            None
        };
        (refusal, delay)
    };
    sleep(delay);
    if let Some(response) = refusal {
        stream.write_all(&response.bytes())?;
        return Ok(true);
    }
    match verb {
        "watch" => watch::watch(stream, shared, request, &target, &place),
        "list" => list::list(stream, shared, request, &target, &place),
        _ => {
            let response = write::write(&mut shared.state().store, request, &target);
            shared.changed.notify_all();
            stream.write_all(&response.bytes())?;
            Ok(true)
        }
    }
}

/// Whether who is bound to roles may do it; remembers what not.
fn may(state: &mut State, verb: &'static str, request: &Request, target: &Target) -> bool {
    let Some(authorizer) = &state.authorizer else {
        return true;
    };
    let wish = |verb| Wish {
        verb,
        resource: &target.resource,
        subresource: target.subresource.as_deref(),
        namespace: target.namespace.as_deref(),
        name: target.name.as_deref().or(target.selection.named()),
    };
    let key = (
        target.namespace.clone().unwrap_or_default(),
        target.name.clone().unwrap_or_default(),
    );
    // Who applies what is not there makes it.
    let makes = request.content_type.contains("apply-patch")
        && state.store.get(&target.resource, &key).is_none();
    let verbs = [Some(verb), makes.then_some("create")];
    let denied = verbs
        .into_iter()
        .flatten()
        .find(|verb| !authorizer.allows(wish(verb)));
    if let Some(verb) = denied {
        let subresource = target.subresource.iter().map(|sub| format!("/{sub}"));
        let name = Target::rbac(&target.resource) + &subresource.collect::<String>();
        state.denied.push((verb, name));
    }
    denied.is_none()
}

/// None for what is about no resource.
fn target(shared: &Shared, request: &Request) -> Result<Option<Target>, Response> {
    let parts: Vec<&str> = request
        .path
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Ok(None),
    };
    let (namespace, rest) = match rest {
        [] => return Ok(None),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        rest => (None, rest),
    };
    let not_found = || {
        Response::failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    };
    let resource = shared.state().store.resource(group, version, rest[0]);
    let resource = resource.ok_or_else(not_found)?;
    let (labels, fields) = (
        request.parameter("labelSelector"),
        request.parameter("fieldSelector"),
    );
    let mut selection = Selection::new(namespace, labels, fields)
        .map_err(|error| Response::failure(400, "BadRequest", &error.0))?;
    let name = rest.get(1).map(|&name| name.to_owned());
    selection.name.clone_from(&name);
    let place = [
        &Target::rbac(&resource),
        namespace.unwrap_or_default(),
        labels.unwrap_or_default(),
        fields.unwrap_or_default(),
    ]
    .join(" ");
    Ok(Some(Target {
        resource,
        namespace: namespace.map(str::to_owned),
        name,
        subresource: rest.get(2).map(|&name| name.to_owned()),
        partial: request.accept.contains("as=PartialObjectMetadata"),
        selection,
        place: place.trim_end().to_owned(),
    }))
}

fn discovery(shared: &Shared, path: &str) -> Response {
    let resources = shared.state().store.resources();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let listed = |group: &str, version: &str| {
        let of: Vec<Value> = resources
            .iter()
            .filter(|r| r.group == group && r.version == version)
            .map(Resource::describe)
            .collect();
        if of.is_empty() {
            return Response::failure(
                404,
                "NotFound",
                "the server could not find the requested resource",
            );
        }
        let version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        Response::ok(json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": of,
        }))
    };
    match parts.as_slice() {
        ["version"] => Response::ok(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["livez" | "readyz" | "healthz"] => Response::ok(json!("ok")),
        ["api"] => Response::ok(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["api", version] => listed("", version),
        ["apis"] => {
            let mut groups: Vec<(&str, &str)> = resources
                .iter()
                .filter(|r| !r.group.is_empty())
                .map(|r| (r.group.as_str(), r.version.as_str()))
                .collect();
            groups.sort_unstable();
            groups.dedup();
            let groups: Vec<Value> = groups
                .into_iter()
                .map(|(group, version)| {
                    let it =
                        json!({ "groupVersion": format!("{group}/{version}"), "version": version });
                    json!({ "name": group, "versions": [it], "preferredVersion": it })
                })
                .collect();
            Response::ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", group, version] => listed(group, version),
        _ => Response::failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
    }
}
