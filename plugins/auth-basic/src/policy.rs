//! The decision about a request.

use std::time::Duration;

use plugway_sdk::passwords::{self, VerifyError};
use plugway_sdk::token::is_token;
use plugway_sdk::{ConfigError, EditPlan, EditPlanId, Input, Part, Response, Setup, ValueName, Values, Verdict, units};

use crate::config::Config;
use crate::credentials::Credentials;
use crate::users::Users;

/// The rules of a configuration.
pub struct Policy {
    users: Users,
    /// The time for which the host remembers a password that is right.
    remember: Duration,
    authorization: Input,
    note: String,
    /// The edits of all requests of a known user: the name in its field, and the credentials removed.
    plan: EditPlanId,
    challenge: String,
}

/// The longest time for which the host remembers a password.
const MAX_REMEMBER: Duration = Duration::from_secs(60 * 60);

/// The time for which a verified password is remembered: short enough that a stolen connection to the past ends soon.
const REMEMBER: Duration = Duration::from_secs(300);

impl Policy {
    /// Parses the users, and checks the rest of the configuration.
    pub fn new(config: &Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let users = Users::new(&config.users, setup);
        let field = config.user_field.as_deref().unwrap_or("x-remote-user");
        if !is_token(field) {
            return Err(ConfigError::at(
                "/user-field",
                "invalid name of a field; expected one such as `X-Remote-User`",
            ));
        }
        let note = config.user_note.clone().unwrap_or_else(|| "user".into());
        if note.is_empty() {
            return Err(ConfigError::at("/user-note", "empty name of a note; expected one such as `user`"));
        }
        let remember = config.remember.as_deref().map(units::duration).transpose();
        let remember = remember.map_err(|message| ConfigError::at("/remember", message))?.unwrap_or(REMEMBER);
        if remember > MAX_REMEMBER {
            return Err(ConfigError::at("/remember", "longer than `1h`, the longest memory; write `1h` or less"));
        }
        let plan = EditPlan::default();
        let plan = if config.keep { plan } else { plan.remove_field("authorization") };
        let plan = plan.set_field(field, vec![Part::Value(ValueName::Note(note.clone()))]);
        Ok(Policy {
            authorization: setup.request.field("authorization"),
            plan: setup.plan(plan),
            challenge: challenge(config)?,
            users,
            remember,
            note,
        })
    }

    /// Returns the decision about a request.
    pub fn decide(&self, request: &Values) -> Verdict {
        let Some(credentials) = request.bytes(self.authorization).and_then(Credentials::parse) else {
            return self.refusal();
        };
        match self.verify(&credentials) {
            Ok(Some(user)) => {
                let name = self.users.get(user).map_or("", |user| &user.name);
                Verdict::proceed().set_note(&self.note, name).plan(self.plan)
            }
            Ok(None) => self.refusal(),
            Err(VerifyError::Busy) => without_store(503).field("retry-after", "1").into(),
            Err(error) => Verdict::Fail(error.to_string()),
        }
    }

    /// Returns the index of the user with these credentials; `None` if they are wrong. An unknown name takes as long as a
    /// wrong password of the first user.
    fn verify(&self, credentials: &Credentials) -> Result<Option<usize>, VerifyError> {
        let Credentials { name, password } = credentials;
        let user = self.users.index(name);
        let hash = self.users.get(user.unwrap_or(0)).map_or("", |user| &user.hash);
        // The password of the first user under another name is hashed as often as a wrong one.
        let time = if user.is_some() { self.remember } else { Duration::ZERO };
        let is_right = passwords::verify_once_in(time, hash, password)?;
        Ok(user.filter(|_| is_right))
    }

    fn refusal(&self) -> Verdict {
        without_store(401).field("www-authenticate", self.challenge.as_str()).into()
    }
}

/// Returns the value of `WWW-Authenticate` (RFC 7617 §2, §2.1).
fn challenge(config: &Config) -> Result<String, ConfigError> {
    let realm = config.realm.as_deref().unwrap_or("restricted");
    let is_text = |letter: char| letter == ' ' || letter.is_ascii_graphic() && !['"', '\\'].contains(&letter);
    if !realm.chars().all(is_text) {
        return Err(ConfigError::at("/realm", "invalid realm; expected ASCII text without quotes and backslashes"));
    }
    Ok(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""))
}

/// Returns a response that no cache may store for others. The host adds the error page.
fn without_store(status: u16) -> Response {
    Response::new(status).field("cache-control", "no-store")
}
