//! Lists, whole or in pages.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::Target;
use super::faults::Fault;
use super::http::{Request, Response};
use super::{Shared, State};

/// Lists in pages that are remembered.
const REMEMBERED: usize = 256;

/// What is left of a list: as it was when it began.
#[derive(Debug)]
pub(super) struct Rest {
    version: u64,
    objects: Vec<Arc<Value>>,
}

pub(super) fn list(
    stream: &mut TcpStream,
    shared: &Shared,
    request: &Request,
    target: &Target,
    place: &str,
) -> io::Result<bool> {
    let (response, truncated) = {
        let mut state = shared.state();
        let response = page(&mut state, request, target, place);
        (response, state.dice.roll(Fault::TruncatedList, place))
    };
    let bytes = response.bytes();
    if truncated {
        stream.write_all(&bytes[..bytes.len() * 2 / 3])?;
        return Ok(false);
    }
    stream.write_all(&bytes)?;
    Ok(true)
}

fn page(state: &mut State, request: &Request, target: &Target, place: &str) -> Response {
    let expired = |message: &str| Response::failure(410, "Expired", message);
    let token = request.parameter("continue");
    let rest = if let Some(token) = token {
        let rest = token
            .parse()
            .ok()
            .and_then(|token| state.pages.remove(&token));
        let Some(rest) = rest.filter(|_| !state.dice.roll(Fault::ContinueExpired, place)) else {
            return expired("The provided continue parameter is too old");
        };
        rest
    } else {
        if state.dice.roll(Fault::Gone, place) {
            return expired("too old resource version");
        }
        let any = request.parameter("resourceVersion") == Some("0");
        let back = if any && state.dice.roll(Fault::Stale, place) {
            usize::try_from(state.dice.number(Fault::Stale, place) % 64).unwrap_or(0)
        } else {
            0
        };
        let (version, mut objects) = state.store.before(&target.resource, back);
        objects.retain(|object| target.selection.matches(object));
        Rest { version, objects }
    };
    let Rest {
        version,
        mut objects,
    } = rest;
    let limit = request
        .parameter("limit")
        .and_then(|limit| limit.parse().ok());
    let mut meta = json!({ "resourceVersion": version.to_string() });
    if let Some(limit) = limit.filter(|limit| (1..objects.len()).contains(limit)) {
        let rest = objects.split_off(limit);
        meta["remainingItemCount"] = json!(rest.len());
        state.next_page += 1;
        meta["continue"] = json!(state.next_page.to_string());
        let rest = Rest {
            version,
            objects: rest,
        };
        state.pages.insert(state.next_page, rest);
        while state.pages.len() > REMEMBERED {
            state.pages.pop_first();
        }
    }
    // The real one leaves kind and version out of the items of what is built in.
    let bare = !target.resource.group.contains('.') || target.resource.group.ends_with(".k8s.io");
    let items: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut shown = target.shown(object);
            if bare
                && !target.partial
                && let Some(fields) = shown.as_object_mut()
            {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            shown
        })
        .collect();
    let (kind, version) = if target.partial {
        (
            "PartialObjectMetadataList".to_owned(),
            "meta.k8s.io/v1".to_owned(),
        )
    } else {
        (
            format!("{}List", target.resource.kind),
            target.resource.api_version(),
        )
    };
    Response::ok(json!({ "kind": kind, "apiVersion": version, "metadata": meta, "items": items }))
}
