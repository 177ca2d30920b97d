//! A plugin with body hooks that tell what they were given: the transformed content begins with the declared values. The
//! field `x-body` of a message decides how its body is passed: `skip`, `stream`, `whole:BYTES` or `whole-or-pass:BYTES`.
//!
//! A whole body says itself what the plugin does with it, by a word such as `q:deny` for a request and `r:deny` for a
//! response: see [`act`].

use plugway_sdk::bindings::types;
use plugway_sdk::{
    BodyError, BodyFilter, BodyMode, BodyVerdict, BufferedRequestBody, BufferedResponseBody, CodedContent, ConfigError,
    ContentRules, Edit, EditPlan, EditPlanId, Input, OverLimit, Plugin, RequestBody, RequestFilter, Response,
    ResponseBody, ResponseFilter, Setup, ValueName, Values, Verdict, export,
};

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How bodies are passed unless a message decides, as in `x-body`.
    bodies: Option<String>,
    ignore_no_transform: bool,
    skip_parts: bool,
    /// How content with a coding is handled: `as-is` or `decode`.
    coded: Option<String>,
}

pub struct Bodies {
    request: Vec<Input>,
    response: Vec<Input>,
    asked: Input,
    answered: Input,
    /// A plan that asks for the body chunk by chunk.
    streams: EditPlanId,
    /// The number of bodies that this instance has received in chunks.
    begun: usize,
}

/// A body whose output begins with a text. The chunk `count` becomes the number of bodies of the instance; after the chunk
/// `long`, the output ends with 8 MiB.
pub struct Headed(Vec<u8>, usize);

/// Returns the mode that a text names.
fn mode(text: &str) -> BodyMode {
    let bytes = |bytes: &str| bytes.parse().unwrap();
    match text.split_once(':') {
        Some(("whole", limit)) => BodyMode::Buffered(bytes(limit), OverLimit::Reject),
        Some(("whole-or-pass", limit)) => BodyMode::Buffered(bytes(limit), OverLimit::PassThrough),
        _ if text == "skip" => BodyMode::Skipped,
        _ => BodyMode::Streamed,
    }
}

impl Plugin for Bodies {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let request = vec![setup.request_body.value(ValueName::Method), setup.request_body.field("content-type")];
        let response =
            vec![setup.response_body.value(ValueName::Status), setup.response_body.response_field("content-type")];
        if let Some(text) = config.bodies {
            setup.request_body.mode = mode(&text);
            setup.response_body.mode = mode(&text);
        }
        let Config { ignore_no_transform, skip_parts, coded, .. } = config;
        let coded = match coded.as_deref() {
            Some("as-is") => CodedContent::AsIs,
            Some("decode") => CodedContent::Decode,
            _ => CodedContent::Reject,
        };
        let rules = ContentRules { ignore_no_transform, skip_parts, coded };
        (setup.request_body.content, setup.response_body.content) = (rules, rules);
        Ok(Bodies {
            request,
            response,
            asked: setup.request.field("x-body"),
            answered: setup.response.response_field("x-body"),
            streams: setup.plan(EditPlan::default().body(BodyMode::Streamed)),
            begun: 0,
        })
    }
}

impl Bodies {
    fn decide(&self, decision: Option<&str>) -> Verdict {
        match decision {
            None => Verdict::proceed(),
            Some("plan") => self.streams.into(),
            Some(text) => Verdict::proceed().body(mode(text)),
        }
    }
}

impl RequestFilter for Bodies {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.decide(request.text(self.asked))
    }
}

impl ResponseFilter for Bodies {
    fn on_response(&mut self, response: &Values) -> Verdict {
        self.decide(response.text(self.answered))
    }
}

fn told(values: &Values, needs: &[Input]) -> String {
    let texts: Vec<&str> = needs.iter().map(|need| values.text(*need).unwrap_or("-")).collect();
    format!("[{}]", texts.join(" "))
}

/// Does what a whole body says.
fn act(side: &str, told: &str, content: &[u8], plan: EditPlanId) -> BodyVerdict {
    let text = String::from_utf8_lossy(content);
    let is_asked = |word: &str| text.contains(&format!("{side}:{word}"));
    match () {
        () if is_asked("trap") => panic!("told to trap at a whole body"),
        () if is_asked("spin") => loop {
            std::hint::black_box(0);
        },
        () if is_asked("fail") => BodyVerdict::Fail("told to fail".into()),
        () if is_asked("deny") => Response::new(403).field("x-denied", "yes").body("text/plain", "denied").into(),
        () if is_asked("sign") => {
            BodyVerdict::proceed().set_field("x-signature", format!("{side} {told} {}", content.len()))
        }
        () if is_asked("swap") => BodyVerdict::replace(content.to_ascii_uppercase()).set_field("x-swapped", "yes"),
        () if is_asked("empty") => BodyVerdict::replace(Vec::new()),
        () if is_asked("huge") => BodyVerdict::replace(vec![b'x'; 5 << 20]),
        () if is_asked("greedy") => BodyVerdict::replace(vec![b'x'; 900 << 20]),
        () if is_asked("framing") => BodyVerdict::proceed().set_field("transfer-encoding", "chunked"),
        () if is_asked("again") => BodyVerdict::proceed().edit(Edit::Body(types::BodyMode::Skipped)),
        () if is_asked("plan") => BodyVerdict::proceed().plan(plan),
        () if is_asked("status") => BodyVerdict::proceed().edit(Edit::SetStatus(418)),
        () if is_asked("elsewhere") => {
            let target = BodyVerdict::proceed().edit(Edit::SetPath(b"/else".to_vec()));
            target.edit(Edit::SetUpstream("other".into()))
        }
        () => BodyVerdict::proceed(),
    }
}

impl BufferedRequestBody for Bodies {
    fn on_request_body(&mut self, request: &Values, content: Vec<u8>) -> BodyVerdict {
        act("q", &told(request, &self.request), &content, self.streams)
    }
}

impl BufferedResponseBody for Bodies {
    fn on_response_body(&mut self, response: &Values, content: Vec<u8>) -> BodyVerdict {
        act("r", &told(response, &self.response), &content, self.streams)
    }
}

impl RequestBody for Bodies {
    type Body = Headed;

    fn request_body(&mut self, request: &Values) -> Headed {
        self.begun += 1;
        Headed(told(request, &self.request).into_bytes(), self.begun)
    }
}

impl ResponseBody for Bodies {
    type Body = Headed;

    fn response_body(&mut self, response: &Values) -> Headed {
        self.begun += 1;
        Headed(told(response, &self.response).into_bytes(), self.begun)
    }
}

impl BodyFilter for Headed {
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
        let mut out = std::mem::take(&mut self.0);
        match &*chunk {
            b"count" => out.extend_from_slice(self.1.to_string().as_bytes()),
            b"long" => self.0.resize(8 << 20, b'x'),
            chunk => out.extend_from_slice(chunk),
        }
        Ok(out)
    }

    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(std::mem::take(&mut self.0))
    }
}

export!(
    Bodies: RequestFilter, ResponseFilter, RequestBody, ResponseBody, BufferedRequestBody, BufferedResponseBody
);
