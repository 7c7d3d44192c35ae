//! One form of bytes for equal messages.
//!
//! A map's entries are encoded in no certain order, and messages inside an `Any` are bytes already
//! when the message around them is compared. So entries are sorted where they stand; lists keep
//! their order. A message that has a map and is missing in the tables below gets other bytes each
//! time: Envoy is told of a change that is none, but no change is missed.

use std::ops::Range;

use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::Any;
use prost::Name as _;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::resources::{CLUSTERS, EXTENSIONS, LISTENERS, ROUTES};

/// Where a message has maps; what is not named has none.
enum Shape {
    /// By the number of the field.
    Message(&'static [(u32, Shape)]),
    /// From something to values of this shape.
    Map(&'static Shape),
    Any,
}

use Shape::{Map, Message};

static ANY: Shape = Shape::Any;
static PLAIN: Shape = Message(&[]);

// Numbers of fields are those of Envoy's definitions, of the names beside them.
static CLUSTER: Shape = Message(&[(36, Map(&ANY))]); // typed_extension_protocol_options
static LISTENER: Shape = Message(&[(
    3, // filter_chains
    Message(&[(
        3,                           // filters
        Message(&[(4, Shape::Any)]), // typed_config
    )]),
)]);
static ROUTE_CONFIGURATION: Shape = Message(&[(
    2, // virtual_hosts
    Message(&[
        (3, Message(&[(13, Map(&ANY))])), // routes, typed_per_filter_config
        (15, Map(&ANY)),                  // typed_per_filter_config
    ]),
)]);
static CONNECTION_MANAGER: Shape = Message(&[
    (5, Message(&[(4, Shape::Any)])),  // http_filters, typed_config
    (13, Message(&[(4, Shape::Any)])), // access_log, typed_config
]);
static TCP_PROXY: Shape = Message(&[(5, Message(&[(4, Shape::Any)]))]); // access_log, typed_config
static STDOUT: Shape = Message(&[(
    1, // log_format
    Message(&[(
        2,                            // json_format
        Message(&[(1, Map(&PLAIN))]), // fields
    )]),
)]);
static HTTP_RBAC: Shape = Message(&[
    (1, Message(&[(2, Map(&PLAIN))])), // rules, policies
    (2, Message(&[(2, Map(&PLAIN))])), // shadow_rules, policies
    (4, MATCHER),                      // matcher
]);
static NETWORK_RBAC: Shape = Message(&[
    (1, Message(&[(2, Map(&PLAIN))])), // as above
    (2, Message(&[(2, Map(&PLAIN))])),
    (6, MATCHER), // matcher
]);
const MATCHER: Shape = Message(&[(
    2,                                             // matcher_tree
    Message(&[(2, Message(&[(1, Map(&PLAIN))]))]), // exact_match_map, map; one entry below each
)]);
static EXTENSION: Shape = Message(&[(2, Shape::Any)]); // typed_config
static RBAC_PER_ROUTE: Shape = Message(&[(
    2, // rbac
    Message(&[
        (1, Message(&[(2, Map(&PLAIN))])), // as above
        (2, Message(&[(2, Map(&PLAIN))])),
    ]),
)]);

fn shape_of(type_url: &str) -> Option<&'static Shape> {
    let is = |other: String| type_url == other;
    Some(match type_url {
        CLUSTERS => &CLUSTER,
        LISTENERS => &LISTENER,
        ROUTES => &ROUTE_CONFIGURATION,
        _ if is(HttpConnectionManager::type_url()) => &CONNECTION_MANAGER,
        _ if is(TcpProxy::type_url()) => &TCP_PROXY,
        _ if is(StdoutAccessLog::type_url()) => &STDOUT,
        EXTENSIONS => &EXTENSION,
        _ if is(http_rbac::Rbac::type_url()) => &HTTP_RBAC,
        _ if is(network_rbac::Rbac::type_url()) => &NETWORK_RBAC,
        _ if is(http_rbac::RbacPerRoute::type_url()) => &RBAC_PER_ROUTE,
        _ => return None,
    })
}

/// Sorts the entries of all maps of a message that was just encoded.
pub(super) fn sort(message: &mut Any) {
    sort_as(&message.type_url, &mut message.value);
}

fn sort_as(type_url: &str, bytes: &mut [u8]) {
    if let Some(shape) = shape_of(type_url) {
        sort_fields(bytes, shape);
    }
}

fn sort_fields(bytes: &mut [u8], shape: &Shape) {
    let fields = match shape {
        Shape::Any => return sort_any(bytes),
        Message(fields) => *fields,
        Map(_) => &[],
    };
    if fields.is_empty() {
        return;
    }
    let shape_of = |number: u32| fields.iter().find(|(of, _)| *of == number);
    let found = read(bytes);
    for field in &found {
        match shape_of(field.number) {
            Some((_, Map(values))) => {
                let entry = &mut bytes[field.content.clone()];
                for part in read(entry) {
                    if part.number == MAP_VALUE {
                        sort_fields(&mut entry[part.content], values);
                    }
                }
            }
            Some((_, shape)) => sort_fields(&mut bytes[field.content.clone()], shape),
            None => {}
        }
    }
    for (number, shape) in fields {
        if matches!(shape, Map(_)) {
            let entries = found.iter().filter(|field| field.number == *number);
            sort_entries(
                bytes,
                &entries.map(|field| &field.whole).collect::<Vec<_>>(),
            );
        }
    }
}

/// Sorts pieces that stand one behind the other.
fn sort_entries(bytes: &mut [u8], entries: &[&Range<usize>]) {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return;
    };
    let mut sorted: Vec<&[u8]> = entries
        .iter()
        .map(|entry| &bytes[(*entry).clone()])
        .collect();
    sorted.sort_unstable();
    let sorted = sorted.concat();
    bytes[first.start..last.end].copy_from_slice(&sorted);
}

fn sort_any(bytes: &mut [u8]) {
    let fields = read(bytes);
    let part = |number| fields.iter().find(|field| field.number == number);
    if let (Some(name), Some(value)) = (part(ANY_TYPE_URL), part(ANY_VALUE)) {
        let name = String::from_utf8_lossy(&bytes[name.content.clone()]).into_owned();
        sort_as(&name, &mut bytes[value.content.clone()]);
    }
}

const MAP_VALUE: u32 = 2;
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;

/// A field as it stands in a message.
struct Field {
    number: u32,
    whole: Range<usize>,
    /// Without key and length.
    content: Range<usize>,
}

fn read(bytes: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = bytes.len() - rest.len();
        let whole = "prost has just encoded it";
        let (number, wire) = decode_key(&mut rest).expect(whole);
        let length = match wire {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0).expect(whole),
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut rest).expect(whole),
            // Envoy's definitions have none.
            WireType::StartGroup | WireType::EndGroup => 0,
        };
        let length = usize::try_from(length).expect("it is in memory");
        let content = bytes.len() - rest.len();
        let end = content + length;
        rest = &bytes[end..];
        fields.push(Field {
            number,
            whole: start..end,
            content: content..end,
        });
    }
    fields
}
