//! The edits of a filter, and its outcomes, as tests compare them.

use std::fmt;

use super::checks::Room;
use super::{Harness, Outcome, Request, current, edit_fields, edits, resolve, rules};
use crate::{BodyMode, Edit, RequestFilter, Response, ResponseFilter, Verdict};

/// Methods that return the edits which the host makes, in their order: those of plans with their values filled in.
///
/// ```
/// use plugway_sdk::testing::{Harness, Request};
/// use plugway_sdk::{ConfigError, Edit, EditPlan, Part, Plugin, RequestFilter, Setup, ValueName, Values, Verdict};
///
/// /// A filter that passes the host on.
/// struct Hosts;
///
/// impl Plugin for Hosts {
///     type Config = ();
///
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         let plan = EditPlan::default().set_field("x-host", vec![Part::Value(ValueName::Host)]);
///         setup.request_plan = Some(setup.plan(plan));
///         Ok(Hosts)
///     }
/// }
///
/// impl RequestFilter for Hosts {
///     fn on_request(&mut self, _: &Values) -> Verdict { Verdict::proceed() }
/// }
///
/// let mut filter = Harness::<Hosts>::new(serde_json::json!({})).unwrap();
/// let edits = filter.request_edits(Request::get("/").authority("a.example:81"));
/// assert_eq!(edits, [Edit::SetField(("x-host".into(), b"a.example".into()))]);
/// ```
impl<P: RequestFilter> Harness<P> {
    /// Runs the request hook, or the plan that replaces it, and returns its edits.
    ///
    /// # Panics
    ///
    /// Panics if the filter responded or failed, and says how.
    #[track_caller]
    pub fn request_edits(&mut self, request: Request) -> Vec<Edit> {
        let verdict = match self.setup.request_plan {
            Some(plan) => Verdict::Plan(plan),
            None => self.called_request(&request),
        };
        let edits = continued(edits(verdict));
        accepted(self.head_request_edits(edits, request)).1
    }

    /// Calls the request hook, while [`exchange`](crate::exchange) has the values of the request.
    pub(super) fn called_request(&mut self, request: &Request) -> Verdict {
        let values = resolve(&self.setup.request, request, None);
        current::during(request, None, || self.plugin.on_request(&values))
    }
}

/// Methods that return the edits to a response, as [`request_edits`](Harness::request_edits) does for a request.
impl<P: ResponseFilter> Harness<P> {
    /// Runs the response hook, or the plan that replaces it, and returns its edits.
    ///
    /// # Panics
    ///
    /// Panics if the filter responded or failed, and says how.
    #[track_caller]
    pub fn response_edits(&mut self, request: &Request, response: Response) -> Vec<Edit> {
        let verdict = match self.setup.response_plan {
            Some(plan) => Verdict::Plan(plan),
            None => self.called_response(request, &response),
        };
        let edits = continued(edits(verdict));
        accepted(self.head_response_edits(edits, request, response)).1
    }

    /// Calls the response hook, while [`exchange`](crate::exchange) has the values of both messages.
    pub(super) fn called_response(&mut self, request: &Request, response: &Response) -> Verdict {
        let values = resolve(&self.setup.response, request, Some(response));
        current::during(request, Some(response), || self.plugin.on_response(&values))
    }
}

impl<P> Harness<P> {
    /// Makes the edits of a request hook, and notes its decision about the body.
    pub(super) fn head_request_edits(
        &mut self,
        edits: Vec<Edit>,
        request: Request,
    ) -> Result<(Request, Vec<Edit>), String> {
        let made = self.make_request_edits(edits, request);
        self.decided.request = decision(&made);
        self.decided.last = self.decided.request;
        made
    }

    /// Makes the edits of a response hook, and notes its decision about the body.
    pub(super) fn head_response_edits(
        &mut self,
        edits: Vec<Edit>,
        request: &Request,
        response: Response,
    ) -> Result<(Response, Vec<Edit>), String> {
        let made = self.make_response_edits(edits, request, response);
        self.decided.response = decision(&made);
        self.decided.last = self.decided.response;
        made
    }

    /// Makes edits of a request; returns the request and the edits made, those of plans with their values filled in. An
    /// error says what the host refuses.
    pub(super) fn make_request_edits(
        &self,
        edits: Vec<Edit>,
        mut request: Request,
    ) -> Result<(Request, Vec<Edit>), String> {
        let edits = rules::request_edits(edits, &request)?;
        let mut room = Room::for_request(&edits, &self.setup, &request)?;
        let mut made = Vec::new();
        for edit in edits {
            let Edit::Plan(plan) = edit else {
                request.apply(edit.clone());
                made.push(edit);
                continue;
            };
            for planned in self.setup.planned(plan) {
                let edit = room.fill(planned, &request, None)?;
                edit.iter().for_each(|edit| request.apply(edit.clone()));
                made.extend(edit);
            }
        }
        Ok((request, made))
    }

    /// Makes edits of a response, as [`make_request_edits`](Harness::make_request_edits) does for a request.
    pub(super) fn make_response_edits(
        &self,
        edits: Vec<Edit>,
        request: &Request,
        mut response: Response,
    ) -> Result<(Response, Vec<Edit>), String> {
        let edits = rules::response_edits(edits)?;
        let mut room = Room::for_response(&edits, &self.setup, request, &response)?;
        let mut made = Vec::new();
        for edit in edits {
            let Edit::Plan(plan) = edit else {
                match edit {
                    Edit::SetStatus(status) => response.status = status,
                    _ => edit_fields(&mut response.fields, edit.clone()),
                }
                made.push(edit);
                continue;
            };
            for planned in self.setup.planned(plan) {
                let edit = room.fill(planned, request, Some(&response))?;
                edit.iter().for_each(|edit| edit_fields(&mut response.fields, edit.clone()));
                made.extend(edit);
            }
        }
        Ok((response, made))
    }
}

/// Returns the decision about a body among the edits made; `None` if there is none.
fn decision<M>(made: &Result<(M, Vec<Edit>), String>) -> Option<BodyMode> {
    made.iter().flat_map(|(_, edits)| edits.iter().rev()).find_map(|edit| match edit {
        Edit::Body(mode) => Some(BodyMode::from_wit(*mode)),
        _ => None,
    })
}

impl<M: fmt::Debug> Outcome<M> {
    /// Returns the message that the filter passed on.
    ///
    /// # Panics
    ///
    /// Panics if the filter responded or failed, and says how.
    #[track_caller]
    pub fn expect_passed(self) -> M {
        match self {
            Outcome::Passed(message) => message,
            other => panic!("the filter did not pass the message on: {other:?}"),
        }
    }

    /// Returns the response of the filter.
    ///
    /// # Panics
    ///
    /// Panics if the filter passed the message on or failed, and says how.
    #[track_caller]
    pub fn expect_answered(self) -> Response {
        match self {
            Outcome::Answered(response) => response,
            other => panic!("the filter did not respond: {other:?}"),
        }
    }

    /// Returns the text with which the filter failed.
    ///
    /// # Panics
    ///
    /// Panics if the filter passed the message on or responded, and says how.
    #[track_caller]
    pub fn expect_failed(self) -> String {
        match self {
            Outcome::Failed(reason) => reason,
            other => panic!("the filter did not fail: {other:?}"),
        }
    }
}

/// Returns the edits of a filter that passes the message on.
#[track_caller]
fn continued(edits: Result<Vec<Edit>, Outcome<()>>) -> Vec<Edit> {
    match edits {
        Ok(edits) => edits,
        Err(outcome) => panic!("the filter did not pass the message on: {outcome:?}"),
    }
}

/// Returns what the host accepts.
#[track_caller]
fn accepted<T>(checked: Result<T, String>) -> T {
    checked.unwrap_or_else(|refused| panic!("the host refuses the call: {refused}"))
}
