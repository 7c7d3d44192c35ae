//! Watches.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::PoisonError;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use serde_json::{Value, json};

use super::answer::Target;
use super::faults::Fault;
use super::http::{Request, Response, Stream, status};
use super::store::Change;
use super::{BOOKMARKS, Shared, State};

/// A watch ends by itself after so long, if the client names no time.
const LONGEST: Duration = Duration::from_mins(30);

/// What to do next.
enum Next {
    Send(Vec<Value>, u64),
    Bookmark(u64),
    /// What was to come is forgotten.
    Gone,
    End,
}

/// Serves a watch to its end; the connection is not used any further.
pub(super) fn watch(
    stream: &mut TcpStream,
    shared: &Shared,
    request: &Request,
    target: &Target,
    place: &str,
) -> io::Result<bool> {
    let deadline = request
        .parameter("timeoutSeconds")
        .and_then(|s| s.parse().ok());
    let deadline = Instant::now() + deadline.map_or(LONGEST, Duration::from_secs);
    let bookmarks = request.flag("allowWatchBookmarks");
    let (refusal, gone, mut version, first) = {
        let mut state = shared.state();
        match begin(&mut state, request, target, place) {
            Ok((version, first)) => {
                let gone = state.dice.roll(Fault::Gone, place);
                // Either way is seen of real ones.
                let refused = gone && state.dice.number(Fault::Gone, place).is_multiple_of(2);
                let refusal =
                    refused.then(|| Response::failure(410, "Expired", "too old resource version"));
                (refusal, gone, version, first)
            }
            Err(refusal) => (Some(refusal), false, 0, Vec::new()),
        }
    };
    if let Some(refusal) = refusal {
        io::Write::write_all(stream, &refusal.bytes())?;
        return Ok(true);
    }
    let mut out = Stream(stream);
    out.begin()?;
    if gone {
        out.send(&line(
            "ERROR",
            &status(410, "Expired", "too old resource version"),
        ))?;
        out.end()?;
        return Ok(true);
    }
    for object in first {
        out.send(&line("ADDED", &target.shown(&object)))?;
    }
    let mut marked = Instant::now();
    loop {
        let until = deadline.min(marked + BOOKMARKS);
        match next(shared, target, version, until, deadline, bookmarks) {
            Next::Send(events, to) => {
                if events.is_empty() {
                    marked = Instant::now();
                }
                for event in events {
                    if !send(&mut out, shared, &event, place)? {
                        return Ok(false);
                    }
                }
                version = to;
            }
            Next::Bookmark(at) => {
                let mark = json!({
                    "kind": target.resource.kind, "apiVersion": target.resource.api_version(),
                    "metadata": { "resourceVersion": at.to_string() },
                });
                out.send(&line("BOOKMARK", &mark))?;
                marked = Instant::now();
                version = at;
                if shared.state().dice.roll(Fault::EarlyEnd, place) {
                    break;
                }
            }
            Next::Gone => {
                out.send(&line(
                    "ERROR",
                    &status(410, "Expired", "too old resource version"),
                ))?;
                break;
            }
            Next::End => break,
        }
    }
    out.end()?;
    Ok(true)
}

/// Where it begins, and what is sent first.
fn begin(
    state: &mut State,
    request: &Request,
    target: &Target,
    place: &str,
) -> Result<(u64, Vec<Value>), Response> {
    let now = state.store.version();
    let Some(wanted) = request.parameter("resourceVersion").filter(|v| *v != "0") else {
        let objects = state.store.objects(&target.resource);
        let first = objects.filter(|object| target.selection.matches(object));
        return Ok((now, first.map(|object| (**object).clone()).collect()));
    };
    let Ok(wanted) = wanted.parse::<u64>() else {
        return Err(Response::failure(
            400,
            "BadRequest",
            "invalid resource version",
        ));
    };
    if wanted > now || state.dice.roll(Fault::Behind, place) {
        let message = format!("Too large resource version: {wanted}, current: {now}");
        let mut refusal = Response::failure(504, "Timeout", &message);
        refusal.body["details"] = json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        });
        return Err(refusal);
    }
    Ok((wanted, Vec::new()))
}

fn next(
    shared: &Shared,
    target: &Target,
    version: u64,
    until: Instant,
    deadline: Instant,
    bookmarks: bool,
) -> Next {
    let mut state = shared.state();
    loop {
        if shared.is_away() {
            return Next::End;
        }
        let Some(changes) = state.store.since(&target.resource, version) else {
            return Next::Gone;
        };
        let to = state.store.version();
        let events: Vec<Value> = changes
            .iter()
            .filter_map(|change| event(target, change))
            .collect();
        if !events.is_empty() {
            return Next::Send(events, to);
        }
        let Target { resource, .. } = target;
        if state
            .store
            .resource(&resource.group, &resource.version, &resource.plural)
            .is_none()
        {
            return Next::End;
        }
        let now = Instant::now();
        if now >= deadline {
            return Next::End;
        }
        if now >= until {
            // Also keeps up with changes of other collections.
            return if bookmarks {
                Next::Bookmark(to)
            } else {
                Next::Send(vec![], to)
            };
        }
        let waited = shared.changed.wait_timeout(state, until - now);
        (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
}

/// What the change is to who selects so: an object that comes to be selected is new to him.
fn event(target: &Target, change: &Change) -> Option<Value> {
    let selected = |object: &&std::sync::Arc<Value>| target.selection.matches(object);
    let (old, new) = (
        change.old.as_ref().filter(selected),
        change.new.as_ref().filter(selected),
    );
    let (kind, object) = match (old, new) {
        (None, None) => return None,
        (None, Some(new)) => ("ADDED", new),
        (Some(_), Some(new)) => ("MODIFIED", new),
        (Some(old), None) => ("DELETED", old),
    };
    let mut object = target.shown(object);
    // Of a deleted one too this is the version of the change.
    object["metadata"]["resourceVersion"] = json!(change.version.to_string());
    Some(json!({ "type": kind, "object": object }))
}

/// Whether the stream can go on.
fn send(out: &mut Stream<'_>, shared: &Shared, event: &Value, place: &str) -> io::Result<bool> {
    let bytes = format!("{event}\n").into_bytes();
    let (delay, duplicate, torn, reset, early, error) = {
        let dice = &mut shared.state().dice;
        (
            dice.delay(place),
            dice.roll(Fault::Duplicate, place),
            dice.roll(Fault::TornLine, place),
            dice.roll(Fault::Reset, place),
            dice.roll(Fault::EarlyEnd, place),
            dice.roll(Fault::ErrorEvent, place),
        )
    };
    sleep(delay);
    if torn {
        out.send(&bytes[..bytes.len() / 2])?;
        return Ok(false);
    }
    if reset {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&out.0.as_fd(), Linger, &linger)?;
        return Ok(false);
    }
    out.send(&bytes)?;
    if duplicate {
        out.send(&bytes)?;
    }
    if error {
        out.send(&line(
            "ERROR",
            &status(500, "InternalError", "etcdserver: leader changed"),
        ))?;
    }
    if early || error {
        out.end()?;
        return Ok(false);
    }
    Ok(true)
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    format!("{}\n", json!({ "type": kind, "object": object })).into_bytes()
}
