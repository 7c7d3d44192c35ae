//! Entries and their conditions.

use super::*;

#[test]
fn authz_and_its_list_are_alternatives_in_this_order() {
    let config = json!({
        "authz": { "allowedClients": mk_client("ratings") },
        "authzList": [
            {},
            { "allowedClients": mk_client("reviews") },
            { "allowedClients": mk_client("ratings") },
        ],
    });
    let spec = json!({ "applyToDestinations": [mk_to("api")], "config": config });
    let world = open().policy(mk_policy("a", spec));
    for (account, entry) in [
        ("ratings", Some(0)),
        ("reviews", Some(2)),
        ("productpage", None),
    ] {
        let decision = world.get(account, "api.org");
        assert_eq!(
            (decision.allowed, decision.entry),
            (entry.is_some(), entry),
            "{account}"
        );
    }
}

/// A condition, a request for which it holds, and some for which it does not.
fn conditions() -> Vec<(&'static str, Value, Asked<'static>, Vec<Asked<'static>>)> {
    let asked = Asked::default;
    vec![
        (
            "allowedMethods",
            json!(["get", "PUT"]),
            asked(),
            vec![
                Asked {
                    method: "HEAD",
                    ..asked()
                },
                Asked {
                    method: "get",
                    ..asked()
                },
                Asked {
                    method: "OPTIONS",
                    ..asked()
                },
            ],
        ),
        (
            "allowedPaths",
            json!(["/v1/*", "/v2", "*.json"]),
            Asked {
                path: "/v1/%61?q=/../v3",
                ..asked()
            },
            vec![
                asked(),
                Asked {
                    path: "/v1",
                    ..asked()
                },
                Asked {
                    path: "/v2/",
                    ..asked()
                },
                Asked {
                    path: "/V1/a",
                    ..asked()
                },
                Asked {
                    path: "/v1/../v3",
                    ..asked()
                },
                Asked {
                    path: "/x?y.json",
                    ..asked()
                },
            ],
        ),
        (
            "allowedIpBlocks",
            json!(["10.1.0.0/16", "192.0.2.7", "fd00::/64"]),
            Asked {
                ip: "::ffff:10.1.255.255",
                ..asked()
            },
            vec![
                Asked {
                    ip: "10.2.0.0",
                    ..asked()
                },
                Asked {
                    ip: "192.0.2.8",
                    ..asked()
                },
                Asked {
                    ip: "fd00:0:0:1::1",
                    ..asked()
                },
                Asked {
                    ip: "::10.1.2.3",
                    ..asked()
                },
            ],
        ),
        (
            "match",
            json!({ "request": { "headers": { "X-Team": { "values": ["red", "b*"],
                                                                "notValues": ["*x"] } } } }),
            Asked {
                headers: &[("x-team", "blue"), ("x-other", "x")],
                ..asked()
            },
            vec![
                asked(),
                Asked {
                    headers: &[("x-team", "")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "Red")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "redder")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "bx")],
                    ..asked()
                },
                Asked {
                    headers: &[("x-team", "red"), ("x-team", "x")],
                    ..asked()
                },
            ],
        ),
        (
            "allowedClients",
            mk_client("productpage"),
            asked(),
            vec![
                Asked {
                    client: mk_id("reviews"),
                    ..asked()
                },
                Asked {
                    client: SpiffeId::new("cluster.local", "shop", "productpage").unwrap(),
                    ..asked()
                },
            ],
        ),
    ]
}

#[test]
fn each_condition_alone_is_for_every_client() {
    for (field, condition, holds, fails) in conditions() {
        let world = with(json!({ field: condition }));
        assert_eq!(holds.reason(&world), Admitted, "{field}");
        for (at, asked) in fails.iter().enumerate() {
            assert_eq!(asked.reason(&world), NotAdmitted, "{field}, request {at}");
        }
        if field != "allowedClients" {
            let client = SpiffeId::new("cluster.local", "shop", "anybody").unwrap();
            let anybody = Asked { client, ..holds };
            assert_eq!(anybody.reason(&world), Admitted, "{field}");
        }
    }
}

#[test]
fn all_conditions_of_an_entry_must_hold() {
    let all = |left_out: Option<&str>| {
        let mut authz = json!({});
        for (field, condition, ..) in conditions() {
            if Some(field) != left_out {
                authz[field] = condition;
            }
        }
        with(authz)
    };
    // For this one every condition holds.
    let good = || Asked {
        path: "/v1/a",
        headers: &[("x-team", "red")],
        ..Asked::default()
    };
    assert_eq!(good().reason(&all(None)), Admitted);
    for (field, bad) in [
        (
            "allowedMethods",
            Asked {
                method: "POST",
                ..good()
            },
        ),
        (
            "allowedPaths",
            Asked {
                path: "/v3",
                ..good()
            },
        ),
        (
            "allowedIpBlocks",
            Asked {
                ip: "10.2.0.1",
                ..good()
            },
        ),
        (
            "match",
            Asked {
                headers: &[],
                ..good()
            },
        ),
        (
            "allowedClients",
            Asked {
                client: mk_id("ratings"),
                ..good()
            },
        ),
    ] {
        assert_eq!(bad.reason(&all(None)), NotAdmitted, "{field}");
        assert_eq!(bad.reason(&all(Some(field))), Admitted, "without {field}");
    }
}

#[test]
fn a_header_that_is_only_forbidden_may_be_missing() {
    let headers = json!({ "request": { "headers": { "x-debug": { "notValues": ["*"] } } } });
    let world = with(json!({ "match": headers }));
    assert_eq!(Asked::default().reason(&world), Admitted);
    for value in ["", "1"] {
        let headers = [("x-debug", value)];
        let asked = Asked {
            headers: &headers,
            ..Asked::default()
        };
        assert_eq!(asked.reason(&world), NotAdmitted, "{value:?}");
    }
}
