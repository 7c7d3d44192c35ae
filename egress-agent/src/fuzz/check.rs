//! A gateway's question as protobuf bytes, through decoding and decision. The first byte chooses who
//! asks and how strictly clients are bound to their pods.

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use prost::Message as _;

use crate::policy_server::authz::fuzz;

pub fn run(data: &[u8]) {
    let Some((choice, message)) = data.split_first() else {
        return;
    };
    if let Ok(request) = CheckRequest::decode(message) {
        fuzz::ask(*choice, &request);
    }
}
