//! The decision about a request.

use plugway_sdk::cache::CREDENTIALS;
use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Part, Response, Setup, ValueName, Values, Verdict};

use crate::config::Config;
use crate::keys::Keys;
use crate::places::Places;

/// The rules of a configuration.
pub struct Policy {
    keys: Keys,
    places: Places,
    /// The owners whose requests are allowed, by their index; `None` if all are.
    owners: Option<Vec<usize>>,
    note: String,
    /// The edits of all requests with a known key: the owner's name in its field, and the field with the key removed.
    plan: EditPlanId,
    challenge: String,
}

impl Policy {
    /// Parses the keys, and checks the rest of the configuration.
    pub fn new(config: &Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let keys = Keys::new(&config.keys, setup);
        let places = Places::new(config, setup);
        let field = config.owner_field.as_deref().unwrap_or("x-key-owner");
        if !is_token(field) {
            return Err(ConfigError::at("/owner-field", "invalid name of a field; expected one such as `X-Key-Owner`"));
        }
        let note = config.owner_note.clone().unwrap_or_else(|| "key-owner".into());
        if note.is_empty() {
            return Err(ConfigError::at("/owner-note", "empty name of a note; expected one such as `key-owner`"));
        }
        let plan = if config.keep { EditPlan::default() } else { places.remove_field(EditPlan::default()) };
        let plan = plan.set_field(field, vec![Part::Value(ValueName::Note(note.clone()))]);
        Ok(Policy {
            owners: config.owners.as_ref().map(|owners| allowed(owners, &keys, setup)),
            plan: setup.plan(plan),
            challenge: challenge(config)?,
            keys,
            places,
            note,
        })
    }

    /// Returns the decision about a request.
    pub fn decide(&self, request: &Values) -> Verdict {
        let Some(owner) = self.places.key(request).and_then(|key| self.keys.owner(&key)) else {
            return refusal(401).field("www-authenticate", self.challenge.as_str()).into();
        };
        if self.owners.as_ref().is_some_and(|owners| !owners.contains(&owner)) {
            return refusal(403).into();
        }
        // A cache knows credentials in `Authorization` only.
        let verdict = Verdict::proceed().set_note(CREDENTIALS, "api-key");
        let verdict = verdict.set_note(&self.note, self.keys.name(owner)).plan(self.plan);
        self.places.remove_parameters(request, verdict)
    }
}

/// Returns the indexes of owners; each of them must have a key.
fn allowed(owners: &[String], keys: &Keys, setup: &mut Setup) -> Vec<usize> {
    if owners.is_empty() {
        setup.report(ConfigError::at("/owners", "no owner, so that every request would be refused; add one"));
    }
    let mut indexes = Vec::new();
    for (place, owner) in owners.iter().enumerate() {
        match keys.index(owner) {
            Some(index) => indexes.push(index),
            None => {
                let message = format!("unknown owner: `{owner}` has no key; add a key, or remove the name");
                setup.report(ConfigError::at(format!("/owners/{place}"), message));
            }
        }
    }
    indexes
}

/// Returns the value of `WWW-Authenticate` (RFC 9110 §11.6.1).
fn challenge(config: &Config) -> Result<String, ConfigError> {
    let realm = config.realm.as_deref().unwrap_or("api");
    let is_text = |letter: char| letter == ' ' || letter.is_ascii_graphic() && !['"', '\\'].contains(&letter);
    if !realm.chars().all(is_text) {
        return Err(ConfigError::at("/realm", "invalid realm; expected ASCII text without quotes and backslashes"));
    }
    Ok(format!("{} realm=\"{realm}\"", config.scheme.as_deref().unwrap_or("ApiKey")))
}

/// Returns a response that no cache may store for others. The host adds the error page.
fn refusal(status: u16) -> Response {
    Response::new(status).field("cache-control", "no-store")
}
