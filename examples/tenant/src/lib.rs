//! A balancer for tenants: a tenant with a zone of its own name gets the endpoints of that zone; all other tenants
//! share the endpoints without a zone. A trusted filter sets the field that names the tenant.

use plugway_sdk::{
    Balancer, Choice, ConfigError, Endpoint, EndpointState, Endpoints, Input, Plugin, ResponseEdits, Setup, Values,
    export,
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The field that names the tenant.
    field: String,
}

pub struct Tenant {
    field: Input,
    /// The indices of the endpoints that are up, with their zones.
    up: Vec<(u32, String)>,
}

impl Plugin for Tenant {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Tenant { field: setup.balancer.field(&config.field), up: Vec::new() })
    }
}

impl Balancer for Tenant {
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, _: &mut ResponseEdits) {
        let up = endpoints.into_iter().zip(0..).filter(|(endpoint, _)| endpoint.state == EndpointState::Up);
        self.up = up.map(|(endpoint, index)| (index, endpoint.zone)).collect();
    }

    fn pick(&mut self, request: &Values, tried: &[u32], endpoints: &Endpoints) -> Option<Choice> {
        let tenant = request.text(self.field).unwrap_or_default();
        self.least(tenant, tried, endpoints).or_else(|| self.least("", tried, endpoints)).map(Choice::from)
    }
}

impl Tenant {
    /// Returns the untried endpoint of a zone with the fewest requests in flight; `None` if there is none.
    fn least(&self, zone: &str, tried: &[u32], endpoints: &Endpoints) -> Option<u32> {
        let fits = |(index, of): &&(u32, String)| of == zone && !tried.contains(index);
        self.up.iter().filter(fits).map(|(index, _)| *index).min_by_key(|index| endpoints.in_flight(*index))
    }
}

export!(Tenant: Balancer);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Request};
    use plugway_sdk::{Endpoint, EndpointState, Endpoints};

    use super::Tenant;

    fn endpoint(zone: &str, state: EndpointState) -> Endpoint {
        Endpoint { address: String::new(), weight: 100, state, tier: 0, zone: zone.into() }
    }

    #[test]
    fn a_tenant_has_its_own_endpoints_and_others_share_the_rest() {
        let mut tenant = Harness::<Tenant>::new(serde_json::json!({ "field": "x-tenant" })).unwrap();
        let up = |zone| endpoint(zone, EndpointState::Up);
        tenant.endpoints_changed(vec![up(""), up("acme"), up(""), up("acme"), endpoint("new", EndpointState::Down)]);
        let loads = Endpoints::for_test(vec![3, 2, 1, 0, 0]);
        let mut pick = |name: &str, tried: &[u32]| {
            let choice = tenant.pick(&Request::get("/").field("x-tenant", name), tried, &loads);
            choice.map(|choice| choice.endpoint)
        };
        assert_eq!(pick("acme", &[]), Some(3));
        assert_eq!(pick("acme", &[3]), Some(1));
        assert_eq!(pick("acme", &[3, 1]), Some(2), "rather shared than none");
        assert_eq!((pick("other", &[]), pick("new", &[])), (Some(2), Some(2)));
        assert_eq!(pick("other", &[0, 2]), None);
    }
}
