//! The response of an endpoint over HTTP/1: wherever its bytes are cut, the head and the body are the same, and nothing that
//! was parsed has control characters.
#![no_main]

use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::fuzz_target;
use plugway_fuzz::upstream::http1::head_search::HeadSearch;
use plugway_fuzz::upstream::http1::response_body::ResponseBodyDecoder;
use plugway_fuzz::upstream::http1::response_head;
use plugway_fuzz::upstream::response_head_limits::ResponseHeadLimits;

const LIMITS: ResponseHeadLimits = ResponseHeadLimits { bytes: 300, fields: 20 };

/// Everything that a response was read as, and the bytes behind it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    heads: Vec<String>,
    content: Vec<u8>,
    trailers: Vec<String>,
    /// Whether it was rejected. Of several reasons, the first that is found depends on the parts.
    has_failed: bool,
    is_over: bool,
    rest: Vec<u8>,
}

fn read(parts: &[&[u8]], method: &Method) -> Seen {
    let (mut bytes, mut search, mut body) = (BytesMut::new(), HeadSearch::default(), None);
    let mut seen = Seen::default();
    for part in parts {
        bytes.extend_from_slice(part);
        while body.is_none() && !seen.has_failed {
            match response_head::take(&mut bytes, &mut search, LIMITS, method) {
                Ok(Some(head)) => {
                    for (_, value) in head.response.headers() {
                        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
                    }
                    seen.heads.push(format!("{head:?}"));
                    let is_informational = head.response.status().is_informational();
                    body = (!is_informational).then(|| ResponseBodyDecoder::new(head.length, LIMITS));
                }
                Ok(None) => break,
                Err(_) => seen.has_failed = true,
            }
        }
        let Some(body) = &mut body else { continue };
        while !seen.has_failed {
            match body.decode(&mut bytes) {
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => seen.content.extend_from_slice(&data),
                    Err(frame) => seen.trailers.push(format!("{:?}", frame.into_trailers().unwrap())),
                },
                Ok(None) => break,
                Err(_) => seen.has_failed = true,
            }
        }
        seen.is_over = body.is_over();
    }
    if !seen.has_failed {
        seen.rest = bytes.to_vec();
    }
    seen
}

fuzz_target!(|input: (bool, u16, Vec<u8>)| {
    let (is_head, cut, bytes) = input;
    let method = if is_head { Method::HEAD } else { Method::GET };
    let cut = usize::from(cut) % (bytes.len() + 1);
    let whole = read(&[&bytes], &method);
    assert_eq!(read(&[&bytes[..cut], &bytes[cut..]], &method), whole);
    let each: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(read(&each, &method), whole);
});
