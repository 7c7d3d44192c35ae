//! Later fragments follow their first one.

use crate::limits::FRAGMENT_NS;
use crate::maps::{Endpoint, Fragment, FragmentKey, word};
use crate::packet::Headers;
use crate::reason::{Reason, Verdict};
use crate::tables::{Full, Tables};

#[inline(always)]
fn fragment_key(headers: &Headers, endpoint: &Endpoint) -> FragmentKey {
    let [a, b, c, d] = headers.dst;
    let proto = if headers.v6 { 0 } else { headers.proto };
    FragmentKey::from_words([endpoint.slot, headers.id, a, b, c, d, word(proto)])
}

#[inline(never)]
pub(super) fn first_fragment<T: Tables>(
    headers: &Headers,
    verdict: Verdict,
    endpoint: &Endpoint,
    tables: &T,
) -> Result<(), Full> {
    let fragment = Fragment {
        seen_ns: tables.now_ns(),
        verdict: verdict as u8,
        pad: [0; 7],
    };
    tables.set_fragment(&fragment_key(headers, endpoint), &fragment)
}

#[inline(never)]
pub(super) fn later_fragment<T: Tables>(
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> Reason {
    match tables.fragment(&fragment_key(headers, endpoint)) {
        Some(first)
            if first.seen_ns >= endpoint.since_ns
                && tables.now_ns().saturating_sub(first.seen_ns) <= FRAGMENT_NS =>
        {
            // Audited once is not allowed: the pod may be held by now.
            if first.verdict == Verdict::Pass as u8 {
                Reason::Fragment
            } else {
                Reason::NotAllowed
            }
        }
        _ => Reason::FragmentUnknown,
    }
}
