//! What the API server checks of an object when it is written: limits and rules of the schemas.
//!
//! The same rules stand in `index::check`, which sees objects from files and from API servers that
//! don't check (Gloo Mesh's own definitions). Each list and text has a limit, because the API
//! server takes a rule only if it can prove that evaluating it is cheap.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// One CEL rule (`x-kubernetes-validations`) and what a user reads when it fails.
pub(super) fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

/// A rule about one field of what the rule stands on, so that the error names that field.
pub(super) fn rule_at(field: &str, rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message, "fieldPath": format!(".{field}") })
}

fn described(mut schema: Schema, text: &str) -> Schema {
    schema.insert("description".to_owned(), text.into());
    schema
}

/// A list of limited length that is replaced as a whole.
fn list(items: &Schema, most: u32) -> Schema {
    json_schema!({ "type": "array", "items": items, "maxItems": most })
}

/// A list without doubles; several appliers may each own some of its items.
fn set(items: &Schema, most: u32) -> Schema {
    json_schema!({
        "type": "array", "items": items, "maxItems": most, "x-kubernetes-list-type": "set",
    })
}

/// A port number; TCP's and UDP's, host byte order.
pub(super) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}

/// A network. `format` holds its form on every API server, the rules (1.31 and newer) what only a
/// parser sees.
fn network() -> Schema {
    json_schema!({
        "type": "string", "format": "cidr", "maxLength": 49,
        "x-kubernetes-validations": [
            rule(
                "isCIDR(self)",
                "must be a network such as 192.0.2.0/24 or 2001:db8::/32; \
                 write IPv4-mapped IPv6 as IPv4",
            ),
            rule(
                "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                "has bits set behind its prefix",
            ),
        ],
    })
}

pub(super) fn cidr(_: &mut SchemaGenerator) -> Schema {
    network()
}

pub(super) fn except(_: &mut SchemaGenerator) -> Schema {
    set(&network(), 64)
}

/// Addresses of resolvers.
pub(super) fn resolvers(_: &mut SchemaGenerator) -> Schema {
    let address = json_schema!({
        "type": "string", "maxLength": 45,
        "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }],
        "x-kubernetes-validations": [rule(
            "isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast())",
            "must be the address of a resolver that a pod could ask; \
             write IPv4-mapped IPv6 as IPv4",
        )],
    });
    set(&address, 16)
}

fn address_or_network() -> Schema {
    json_schema!({
        "type": "string", "maxLength": 49,
        "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }, { "format": "cidr" }],
    })
}

pub(super) fn addresses(_: &mut SchemaGenerator) -> Schema {
    list(&address_or_network(), 256)
}

/// A host name, or `*.` in front of one; or `*`.
fn host_name() -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 256,
        "pattern": r"^(\*|(\*\.)?([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)$",
    })
}

pub(super) fn host(_: &mut SchemaGenerator) -> Schema {
    host_name()
}

pub(super) fn hosts(_: &mut SchemaGenerator) -> Schema {
    list(&host_name(), 256)
}

/// Names that a certificate may bear.
pub(super) fn alt_names(_: &mut SchemaGenerator) -> Schema {
    list(
        &json_schema!({ "type": "string", "minLength": 1, "maxLength": 2048 }),
        64,
    )
}

pub(super) fn methods(_: &mut SchemaGenerator) -> Schema {
    let method = json_schema!({ "type": "string", "maxLength": 32, "pattern": "^[A-Za-z-]+$" });
    list(&method, 32)
}

/// Exact, `prefix*` or `*suffix`.
pub(super) fn paths(_: &mut SchemaGenerator) -> Schema {
    let path = json_schema!({
        "type": "string", "maxLength": 1024, "pattern": r"^(\*|\*?[^*]+|[^*]+\*)$",
    });
    list(&path, 256)
}

/// Values of a header: exact, `prefix*`, `*suffix`, or `*` for any.
pub(super) fn header_values(_: &mut SchemaGenerator) -> Schema {
    let value = json_schema!({
        "type": "string", "maxLength": 1024, "pattern": r"^(\*|\*?[^*]+|[^*]+\*)$",
    });
    list(&value, 64)
}

/// Labels that must all be there.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "maxProperties": 32,
        "additionalProperties": {
            "type": "string", "maxLength": 63,
            "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
        },
    })
}

/// A label selector whose unknown fields are kept: see [`super::selector::strict`].
pub(super) fn label_selector(generator: &mut SchemaGenerator) -> Schema {
    let values = list(
        &json_schema!({
            "type": "string", "maxLength": 63,
            "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
        }),
        256,
    );
    json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "matchLabels": described(labels(generator), "Labels that must all be there."),
            "matchExpressions": {
                "description": "Conditions on labels that must all hold.",
                "type": "array", "maxItems": 32,
                "items": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "description": "Key of the label.",
                            "type": "string", "minLength": 1, "maxLength": 317,
                        },
                        "operator": {
                            "description": "Whether it must be there, or with which value.",
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": described(values, "Values for In and NotIn."),
                    },
                    "x-kubernetes-validations": [
                        rule_at(
                            "values",
                            "!(self.operator in ['In', 'NotIn']) || \
                             (has(self.values) && size(self.values) > 0)",
                            "In and NotIn need values",
                        ),
                        rule_at(
                            "values",
                            "!(self.operator in ['Exists', 'DoesNotExist']) || \
                             !has(self.values) || size(self.values) == 0",
                            "Exists and DoesNotExist take no values",
                        ),
                    ],
                },
            },
        },
    })
}

/// Conditions, each type once.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 8,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "description": "What the condition is about.",
                    "type": "string", "maxLength": 316,
                },
                "status": {
                    "description": "Whether it holds.",
                    "type": "string", "enum": ["True", "False", "Unknown"],
                },
                "observedGeneration": {
                    "description": "The generation that it tells of.",
                    "type": "integer", "format": "int64", "minimum": 0,
                },
                "lastTransitionTime": {
                    "description": "When `status` last changed.",
                    "type": "string", "format": "date-time",
                },
                "reason": {
                    "description": "Why, in one word for machines.",
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "description": "Why, and what to do.",
                    "type": "string", "maxLength": 32768,
                },
            },
        },
    })
}
