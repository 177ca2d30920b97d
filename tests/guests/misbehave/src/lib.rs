//! A plugin that misbehaves if a request asks for it in `x-misbehave`, and tags other requests.

use plugway_sdk::{ConfigError, Edit, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export, log};

pub struct Misbehave {
    how: Input,
    calls: u32,
}

impl Plugin for Misbehave {
    type Config = ();

    fn new((): (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Misbehave { how: setup.request.field("x-misbehave"), calls: 0 })
    }
}

impl RequestFilter for Misbehave {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.calls += 1;
        match request.text(self.how) {
            Some("trap") => panic!("told to trap"),
            Some("spin") => loop {
                std::hint::black_box(self.calls);
            },
            Some("eat") => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                loop {
                    eaten.push(vec![1; 1 << 20]);
                    std::hint::black_box(&eaten);
                }
            }
            Some("malformed-name") => Verdict::proceed().set_field("x bad", "1"),
            Some("malformed-value") => Verdict::proceed().set_field("x-split", "1\r\nx-injected: 1"),
            Some("framing") => Verdict::proceed().set_field("transfer-encoding", "chunked"),
            Some("framing-alias") => Verdict::proceed().set_field("content_length", "3"),
            Some("wrong-side") => Verdict::proceed().edit(Edit::SetStatus(200)),
            Some("half") => Verdict::proceed().set_field("x-half", "1").set_upstream("nowhere"),
            Some("give-up") => Verdict::Fail("told to give up".into()),
            Some("wait") => {
                std::thread::sleep(std::time::Duration::from_secs(1));
                Verdict::proceed()
            }
            Some("print") => {
                print!("printed by ");
                println!("a plugin");
                Verdict::proceed()
            }
            Some("chatter") => {
                (0..1000).for_each(|line| log::info(&format!("chatter {line}")));
                Verdict::proceed()
            }
            Some("drop-streams") => {
                let out = wasip2::cli::stdout::get_stdout();
                let _ = out.write(b"dropped\n");
                drop((out, wasip2::cli::stdin::get_stdin()));
                Verdict::proceed()
            }
            Some("crowd") => {
                let response = (0..30_000).fold(Response::new(200), |all, n| all.field(format!("x-{n}"), "1"));
                response.into()
            }
            Some("notes") => (0..200_000).fold(Verdict::proceed(), |all, n| all.set_note(&n.to_string(), "1")),
            // Empty strings cost the plugin next to nothing, but the host a lot.
            Some("hoard") => Verdict::Proceed(vec![Edit::RemoveField(String::new()); 400_000]),
            Some(told) if told.starts_with("edit ") => {
                edit(told).map_or_else(Verdict::proceed, |edit| Verdict::proceed().edit(edit))
            }
            Some("unknown-plan") => Verdict::proceed().edit(Edit::Plan(7)),
            _ => Verdict::proceed().set_field("x-calls", self.calls.to_string()),
        }
    }
}

/// Returns the edit that a request asks for with `edit WHAT TEXT`.
fn edit(told: &str) -> Option<Edit> {
    let (what, text) = told.strip_prefix("edit ")?.split_once(' ')?;
    let host = || ("host".to_string(), text.as_bytes().to_vec());
    Some(match what {
        "authority" => Edit::SetAuthority(text.into()),
        "set-host" => Edit::SetField(host()),
        "append-host" => Edit::AppendField(host()),
        "default-host" => Edit::DefaultField(host()),
        "rename-host" => Edit::RenameField((text.into(), "host".into())),
        "set" => Edit::SetField((text.into(), b"1".to_vec())),
        "value" => Edit::SetField(("x-value".into(), text.replace('_', " ").into_bytes())),
        "method" => Edit::SetMethod(text.into()),
        "path" => Edit::SetPath(text.as_bytes().to_vec()),
        "query" => Edit::SetQuery(Some(text.as_bytes().to_vec())),
        "max-body" => Edit::MaxBody(text.parse().ok()?),
        _ => return None,
    })
}

export!(Misbehave: RequestFilter);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Outcome, Request};

    use super::*;

    fn edited(edit: &str) -> Outcome<Request> {
        let mut misbehave = Harness::<Misbehave>::new(serde_json::json!({})).unwrap();
        misbehave.request(Request::get("/").field("x-misbehave", &format!("edit {edit}")))
    }

    #[test]
    fn the_edits_that_the_proxy_refuses_fail_in_native_tests() {
        for edit in include_str!("../refused.txt").lines() {
            let outcome = edited(edit);
            assert!(matches!(outcome, Outcome::Failed(_)), "{edit}: {outcome:?}");
        }
    }

    #[test]
    fn edits_are_made_in_their_normal_form_as_in_the_proxy() {
        assert_eq!(edited("authority Other.example.:80").expect_passed().host(), "other.example");
        assert_eq!(edited("authority [0:0::1]:081").expect_passed().host(), "[::1]:81");
        assert_eq!(edited("set-host Other.example:80").expect_passed().text("host"), Some("other.example"));
        assert_eq!(edited("path /a/./%7eb/../c//d").expect_passed().path(), "/a/c/d");
        assert_eq!(edited("value _a_b_").expect_passed().text("x-value"), Some("a b"));
    }
}
