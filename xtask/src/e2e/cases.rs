//! The catalogue: every case by name, in the order in which it is tried, with what must come of it.

use std::fmt;

/// Where in the story a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// As `--only` takes it.
    pub name: &'static str,
    /// What must come of it.
    pub expected: &'static str,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<28} {}", self.name, self.expected)
    }
}

const fn case(name: &'static str, expected: &'static str) -> Case {
    Case { name, expected }
}

/// What a way around the gateway must become once the lockdown is `Enforce`.
const CUT: &str = "nothing arrives outside, egressctl has a reason";
/// And while it is `Audit`.
const REPORTED: &str = "passes, egressctl reports that it would be cut";

/// Everything there is.
pub const CASES: &[Case] = &[
    case("install", "the chart installs"),
    case("agents-ready", "an agent is Ready on each node"),
    case(
        "hole",
        "without a lockdown a pod reaches the outside directly",
    ),
    case(
        "gateway-ready",
        "the gateway's Envoy gets its configuration from an agent",
    ),
    // Each of these shows too that the attempt of the same name below is a real one.
    case("audit-http", REPORTED),
    case("audit-uid-1337", REPORTED),
    case("audit-udp", REPORTED),
    case("audit-ipv6", REPORTED),
    case("audit-icmp", REPORTED),
    case("audit-raw-socket", REPORTED),
    case("audit-packet-socket", REPORTED),
    case("audit-spoofed-source", REPORTED),
    case("audit-vlan", REPORTED),
    case("audit-fragments", REPORTED),
    case("audit-outside-endpoints", REPORTED),
    case("audit-node-port", REPORTED),
    case("audit-host-network", REPORTED),
    case("audit-label-impostor", REPORTED),
    case("covered", "egressctl status exits 0 on each node"),
    case(
        "guide-allowed",
        "productpage gets 200 by the gateway, over TLS",
    ),
    case("guide-denied", "reviews gets 403 `RBAC: access denied`"),
    case("guide-direct", "productpage can't step around the gateway"),
    case("bypass-http", CUT),
    case("bypass-uid-1337", CUT),
    case("bypass-udp", CUT),
    case("bypass-ipv6", CUT),
    case("bypass-icmp", CUT),
    case("bypass-raw-socket", CUT),
    case("bypass-packet-socket", CUT),
    case("bypass-spoofed-source", CUT),
    case("bypass-vlan", CUT),
    case("bypass-fragments", CUT),
    case("bypass-outside-endpoints", CUT),
    case("bypass-node-port", CUT),
    case("bypass-host-network", CUT),
    case("bypass-label-impostor", CUT),
    case("bypass-init-container", CUT),
    case("bypass-ephemeral-container", CUT),
    case(
        "bypass-first-packet",
        "pods that send from their first instruction on get nothing out",
    ),
    case("bypass-gateway-port", "a gateway's other ports are closed"),
    case(
        "bypass-dead-gateway",
        "a gateway that is not Ready is closed",
    ),
    case("bypass-every-node", "on each node nothing arrives outside"),
    case("works-dns-udp", "the cluster's DNS answers"),
    case("works-dns-tcp", "the cluster's DNS answers"),
    case(
        "works-api-server",
        "the API server's Service can be reached",
    ),
    case("works-pod", "another pod answers"),
    case("works-service", "a Service answers"),
    case(
        "works-node-to-pod",
        "the node reaches a held pod, and its NodePort",
    ),
    case(
        "works-kubelet-probes",
        "a held pod with probes stays Ready and is not restarted",
    ),
    case(
        "works-not-held",
        "a pod that no lockdown selects reaches the outside",
    ),
    case(
        "restart-delete",
        "agent's pod deleted under traffic: nothing out, nothing broken",
    ),
    case(
        "restart-kill",
        "agent killed under traffic: nothing out, nothing broken",
    ),
    case(
        "upgrade",
        "chart upgraded under traffic: nothing out, nothing broken",
    ),
    case(
        "guide-stolen",
        "productpage's certificate used by reviews gets 403",
    ),
    case(
        "bad-object",
        "a lockdown with an unknown field: the last good version stands",
    ),
    case("bad-object-status", "its status says why it is refused"),
    case(
        "bad-object-restart",
        "an agent that starts meanwhile holds what the last one held",
    ),
    case("bad-object-mended", "once it is mended it holds"),
    case(
        "uninstall",
        "no program, pin, taint, report or Lease is left of any node",
    ),
    case("uninstall-open", "what was held reaches the outside again"),
    case("uninstall-release", "the release is gone"),
];

/// The case with this name.
///
/// # Panics
/// If the catalogue has none: then the story tells what nobody announced.
pub fn find(name: &str) -> &'static Case {
    CASES
        .iter()
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("the catalogue has no case {name}"))
}

/// Whether `--only` takes in this case: by its whole name, or by the beginning up to a dash.
pub fn chosen(only: &[String], name: &str) -> bool {
    only.is_empty()
        || only.iter().any(|wanted| {
            name.strip_prefix(wanted.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
}

/// What of `--only` names nothing.
pub fn unknown(only: &[String]) -> Vec<&String> {
    let nothing = |wanted: &&String| {
        let wanted = std::slice::from_ref(*wanted);
        !CASES.iter().any(|case| chosen(wanted, case.name))
    };
    only.iter().filter(nothing).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_there_once() {
        let names: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn each_audited_attempt_is_tried_again_where_it_must_be_cut() {
        let audited = CASES.iter().filter_map(|c| c.name.strip_prefix("audit-"));
        for name in audited {
            find(&format!("bypass-{name}"));
        }
    }

    #[test]
    fn cases_are_chosen_by_name_or_group() {
        let only = |text: &str| vec![text.to_owned()];
        assert!(chosen(&[], "install"));
        assert!(chosen(&only("bypass"), "bypass-udp"));
        assert!(chosen(&only("bypass-udp"), "bypass-udp"));
        assert!(!chosen(&only("bypass-u"), "bypass-udp"));
        assert_eq!(unknown(&only("bypas")), ["bypas"]);
        assert!(unknown(&only("works")).is_empty());
    }
}
