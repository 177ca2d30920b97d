//! A filter that refuses a request if any of its values is bad: a line of `Content-Type`, a query parameter `id`, a cookie
//! `session`. It passes all values on to the upstream, and those of the response to the client.

use plugway_sdk::{
    ConfigError, Plugin, RequestFilter, Response, ResponseFilter, Setup, ValueName, Values, Verdict, exchange, export,
};

pub struct AllValues {
    content_type: ValueName,
    id: ValueName,
    session: ValueName,
}

impl Plugin for AllValues {
    type Config = ();

    fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(AllValues {
            content_type: ValueName::RequestField("content-type".into()),
            id: ValueName::QueryParameter("id".into()),
            session: ValueName::Cookie("session".into()),
        })
    }
}

impl RequestFilter for AllValues {
    fn on_request(&mut self, _: &Values) -> Verdict {
        let types = exchange::values(&self.content_type);
        let (ids, sessions) = (exchange::values(&self.id), exchange::values(&self.session));
        if types.iter().any(|media_type| media_type != b"application/json") {
            return Response::new(415).into();
        }
        let is_number = |value: &Vec<u8>| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        if !ids.iter().all(is_number) || !sessions.iter().all(is_number) {
            return Response::new(400).into();
        }
        let method = exchange::values(&ValueName::Method);
        let absent = exchange::values(&ValueName::TlsVersion);
        let too_long = exchange::values(&ValueName::Cookie("x".repeat(2_000)));
        let others = [method, absent, too_long].concat();
        let fields = [("x-types", types), ("x-ids", ids), ("x-sessions", sessions), ("x-others", others)];
        let present = fields.into_iter().filter(|(_, values)| !values.is_empty());
        present.fold(Verdict::proceed(), |verdict, (name, values)| verdict.set_field(name, values.join(&b'|')))
    }
}

impl ResponseFilter for AllValues {
    fn on_response(&mut self, _: &Values) -> Verdict {
        let cookies = exchange::values(&ValueName::ResponseField("set-cookie".into()));
        match cookies.is_empty() {
            true => Verdict::proceed(),
            false => Verdict::proceed().set_field("x-cookies", cookies.join(&b'|')),
        }
    }
}

export!(AllValues: RequestFilter, ResponseFilter);

#[cfg(test)]
mod tests {
    use plugway_sdk::Response;
    use plugway_sdk::testing::{Harness, Request};

    use super::AllValues;

    #[test]
    fn a_native_test_has_the_values_of_the_proxy() {
        let mut filter = Harness::<AllValues>::new(serde_json::json!({})).unwrap();
        let good = Request::get("/?id=1&a=x&%69d=2").field("content-type", "application/json");
        let good = good.field("cookie", "session=3; a=b").field("cookie", "session=4");
        let passed = filter.request(good.clone()).expect_passed();
        assert_eq!((passed.text("x-ids"), passed.text("x-sessions")), (Some("1|2"), Some("3|4")));
        assert_eq!((passed.text("x-types"), passed.text("x-others")), (Some("application/json"), Some("GET")));
        for bad in [good.clone().field("cookie", "session=x"), Request::get("/?id=1&id"), Request::get("/?i%64='")] {
            assert_eq!(filter.request(bad).expect_answered().status, 400);
        }
        let two = good.clone().field("Content-Type", "text/html");
        assert_eq!(filter.request(two).expect_answered().status, 415);

        let response = Response::new(200).field("set-cookie", "a=1").field("Set-Cookie", "b=2");
        let passed = filter.response(&good, response).expect_passed();
        assert!(passed.fields.contains(&("x-cookies".into(), b"a=1|b=2".into())), "{passed:?}");
    }
}
