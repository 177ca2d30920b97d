//! Sticky sessions: a cookie names the endpoint by a token that can't be made or read without the secret.

use std::collections::HashMap;

use plugway_sdk::cookie::{self, SetCookie};
use plugway_sdk::{Choice, Edit, Endpoint, EndpointState, Input, Inputs, ResponseEdits, ResponseEditsId, Values};

use crate::config::StickyConfig;

/// The tokens of the endpoints, and the cookie that contains one.
pub struct Sticky {
    /// The field `Cookie`.
    received: Input,
    name: String,
    key: [u8; blake3::KEY_LEN],
    /// The cookie, whose value is a token.
    cookie: SetCookie,
    /// The plans that set the cookie, by the index of the endpoint.
    plans: Vec<ResponseEditsId>,
    /// The indices by token, of the endpoints that may be chosen.
    indices: HashMap<String, u32>,
}

/// The context for deriving the key. It separates this key from other keys of the same secret. Changing it invalidates
/// all sessions.
const PURPOSE: &str = "plugway balance 2026 endpoint token in sticky cookie";

/// The length of a token in hexadecimal digits: 16 bytes of the MAC, which can't be guessed.
const TOKEN_DIGITS: usize = 32;

impl Sticky {
    /// Derives the key and declares the field as a value.
    pub fn new(config: &StickyConfig, needs: &mut Inputs) -> Self {
        Sticky {
            received: needs.field("cookie"),
            name: config.cookie.clone(),
            key: blake3::derive_key(PURPOSE, config.secret.as_bytes()),
            cookie: config.set_cookie(),
            plans: Vec::new(),
            indices: HashMap::new(),
        }
    }

    /// Computes the token of each endpoint from its address, so that all workers and proxies compute the same token. A tier
    /// that gets no requests at present, such as one of backups, gets none by a cookie, and sets none after a retry.
    pub fn endpoints_changed(
        &mut self,
        endpoints: &[Endpoint],
        gets_requests: impl Fn(u32) -> bool,
        plans: &mut ResponseEdits,
    ) {
        let token = |endpoint: &Endpoint| {
            let mac = blake3::keyed_hash(&self.key, endpoint.address.as_bytes());
            mac.to_hex()[..TOKEN_DIGITS].to_owned()
        };
        let tokens: Vec<String> = endpoints.iter().map(token).collect();
        // The configuration was checked: a cookie with an error is never set.
        let line = |token: &String| self.cookie.clone().value(token).build().ok();
        let edit = |line: String| Edit::AppendField(("set-cookie".into(), line.into_bytes()));
        let tokens = || endpoints.iter().zip(&tokens);
        let edits = |(endpoint, token): (&Endpoint, &String)| {
            let line = line(token).filter(|_| gets_requests(endpoint.tier));
            line.map(edit).into_iter().collect()
        };
        self.plans = tokens().map(|named| plans.plan(edits(named))).collect();
        let may_be_chosen = |endpoint: &Endpoint| endpoint.state == EndpointState::Up && gets_requests(endpoint.tier);
        let named = tokens().zip(0..).filter(|((endpoint, _), _)| may_be_chosen(endpoint));
        self.indices = named.map(|((_, token), index)| (token.clone(), index)).collect();
    }

    /// Returns the endpoint that a cookie of a request names; `None` if there is none that can be chosen. A browser may send
    /// several cookies of the name: of other paths, and of the domains above (RFC 6265 §5.4).
    pub fn remembered(&self, request: &Values, tried: &[u32]) -> Option<u32> {
        let cookies = cookie::all_pairs(request.bytes(self.received)?);
        let tokens = cookies.filter(|(name, _)| *name == self.name.as_bytes()).map(|(_, token)| token);
        let mut indices = tokens.filter_map(|token| self.indices.get(std::str::from_utf8(token).ok()?));
        indices.find(|index| !tried.contains(index)).copied()
    }

    /// Returns the choice of an endpoint, with the plan that sets its cookie.
    pub fn choice(&self, index: u32) -> Choice {
        let choice = Choice::from(index);
        self.plans.get(index as usize).map_or(choice, |plan| choice.with(*plan))
    }
}
