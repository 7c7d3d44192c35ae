//! The guide's objects, and the outside they speak of.

use egress_agent::gateway::envoy::Authorization;

use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::Authority;
use crate::upstream;

/// The guide's objects: `api.localhost` for productpage alone; `wrong.localhost` whose server has
/// another name's certificate; `open.localhost` without policy; a wildcard; a named host that the
/// gateway does not serve.
pub fn guide(port: u16, secure: u16, wrong: u16, plain: u16) -> Objects {
    Objects::parse(&format!(
        r#"
kind: VirtualGateway
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: egress-vg, namespace: istio-egress }}
spec:
  workloads: [{{ selector: {{ labels: {{ istio: egressgateway }} }} }}]
  listeners:
  - port: {{ number: {port} }}
    tls: {{ mode: ISTIO_MUTUAL }}
    exposedExternalServices: [{{ host: "*.localhost" }}]
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: api, namespace: global }}
spec:
  hosts: [api.localhost]
  ports:
  - number: {secure}
    name: https
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes:
      portMatch: 80
      virtualGatewayRefs: [{{ name: egress-vg, namespace: istio-egress, cluster: here }}]
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: wrong, namespace: global }}
spec:
  hosts: [wrong.localhost]
  ports:
  - number: {wrong}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{}}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: open, namespace: global }}
spec:
  hosts: [open.localhost]
  ports:
  - number: {plain}
    egressGatewayRoutes: {{ portMatch: 8080 }}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: wild, namespace: global }}
spec:
  hosts: ["*.wild.localhost"]
  ports:
  - number: {secure}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{}}
---
kind: ExternalService
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: elsewhere, namespace: global }}
spec:
  hosts: [elsewhere.wild.localhost]
  ports:
  - number: {secure}
    protocol: HTTPS
    clientsideTls: {{}}
    egressGatewayRoutes: {{ virtualGatewayRefs: [{{ name: other, namespace: istio-egress }}] }}
---
kind: AccessPolicy
apiVersion: sallyport.dev/v1alpha1
metadata: {{ name: egress-access-policy, namespace: istio-egress }}
spec:
  applyToDestinations:
  - kind: EXTERNAL_SERVICE
    port: {{ number: {secure} }}
    selector: {{ cluster: here, name: api, namespace: global }}
  config:
    authz:
      allowedClients:
      - serviceAccountSelector:
          cluster: here
          labels: {{ account: productpage }}
          namespace: bookinfo
"#
    ))
}

/// The outside: servers on loopback.
pub struct Outside {
    pub authority: Authority,
    pub secure: u16,
    pub wrong: u16,
    pub plain: u16,
}

pub fn outside() -> Outside {
    let authority = Authority::new("outside");
    let secure = authority.sign(&["api.localhost", "*.wild.localhost"], &[]);
    let wrong = authority.sign(&["api.localhost"], &[]);
    Outside {
        secure: upstream::serve_tls(&secure),
        wrong: upstream::serve_tls(&wrong),
        plain: upstream::serve_plain(),
        authority,
    }
}

/// Both ways to decide; what they decide is the same.
pub const BOTH: [Authorization; 2] = [Authorization::Rbac, Authorization::ExtAuthz];

/// A gateway on the guide's objects.
pub fn start(authorization: Authorization) -> (Gateway, Objects, Outside) {
    let outside = outside();
    let port = free_port();
    let objects = guide(port, outside.secure, outside.wrong, outside.plain);
    let gateway = Gateway::start(port, &objects, &outside.authority, authorization);
    (gateway, objects, outside)
}
