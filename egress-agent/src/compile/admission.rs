//! Which service accounts some gateway may let through, for `gatewayAccess: Policy`.

use crate::index::Key;

/// Whether the gateways may let a client through at all.
pub trait GatewayAdmission {
    /// Whether there is a request that the gateways would let this service account make.
    fn admits(&self, service_account: &Key) -> bool;
}

impl<F: Fn(&Key) -> bool> GatewayAdmission for F {
    fn admits(&self, service_account: &Key) -> bool {
        self(service_account)
    }
}
