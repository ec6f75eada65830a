//! Nodes that are none: whatever comes over a connection, the worker neither hangs nor ends, and another node is asked.

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::backend::riak::classify::Effect;
use crate::backend::riak::wire::{self, Content, ErrorResp, FRAME_BYTES_MAX, GetReq, GetResp};

/// What comes in place of a reply.
enum Says {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes, then nothing.
    Hangs(Vec<u8>),
    /// The end, once a request has come.
    Nothing,
}

fn framed(code: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len() + 1).unwrap();
    [&length.to_be_bytes()[..], &[code], message].concat()
}

/// Listens and says the same to everybody; gives where.
async fn listen(says: Says) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let says = Arc::new(says);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let mut request = [0; 5];
                while stream.read_exact(&mut request).await.is_ok() {
                    let rest = u32::from_be_bytes(request[..4].try_into().unwrap()) as usize - 1;
                    let _ = stream.read_exact(&mut vec![0; rest]).await;
                    match &*says {
                        Says::Bytes(bytes) => {
                            let _ = stream.write_all(bytes).await;
                            return;
                        }
                        Says::Hangs(bytes) => {
                            let _ = stream.write_all(bytes).await;
                            std::future::pending::<()>().await;
                        }
                        Says::Nothing => return,
                    }
                }
            });
        }
    });
    host
}

fn hostile() -> Vec<(&'static str, Says)> {
    let found = GetResp {
        content: vec![Content { value: Bytes::from_static(b"v"), ..Content::default() }],
        ..GetResp::default()
    };
    let found = found.encode_to_vec();
    let whole = framed(10, &found);
    let huge = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
    let allowed = u32::try_from(FRAME_BYTES_MAX).unwrap().to_be_bytes();
    let error = ErrorResp { errmsg: Bytes::from_static(b"\xff\x00\xfe odd\n"), errcode: 0 }.encode_to_vec();
    vec![
        ("a length of 0", Says::Bytes(vec![0, 0, 0, 0])),
        ("a length of 0, then silence", Says::Hangs(vec![0, 0, 0, 0])),
        ("the largest length", Says::Hangs(vec![0xff; 5])),
        ("a length beyond the limit", Says::Hangs([&huge[..], &[10]].concat())),
        ("a length at the limit and nothing of it", Says::Hangs([&allowed[..], &[10]].concat())),
        ("half a length", Says::Hangs(vec![0, 0])),
        ("half a length, then the end", Says::Bytes(vec![0, 0])),
        ("half a reply", Says::Bytes(whole[..whole.len() - 1].to_vec())),
        ("half a reply, then silence", Says::Hangs(whole[..whole.len() - 1].to_vec())),
        ("another kind of reply", Says::Hangs(framed(12, &[]))),
        ("a kind that there is not", Says::Hangs(framed(200, &found))),
        ("a reply that cannot be read", Says::Hangs(framed(10, &found[..found.len() - 1]))),
        ("a group that never ends", Says::Hangs(framed(10, &[0x0b; 64]))),
        ("a length inside that is too long", Says::Hangs(framed(10, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]))),
        ("an error that cannot be read", Says::Hangs(framed(0, &[0x0a, 5, 1]))),
        ("an error of odd bytes", Says::Hangs(framed(0, &error))),
        ("an error without a text", Says::Hangs(framed(0, &[]))),
        ("an HTTP server", Says::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ("the end", Says::Nothing),
        ("silence", Says::Hangs(Vec::new())),
    ]
}

fn request() -> GetReq {
    GetReq { bucket: Bytes::from_static(b"n"), key: Bytes::from_static(b"k"), ..GetReq::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_in_place_of_a_reply_is_a_fault_in_time_and_another_node_is_asked() {
    let double = Double::start(1);
    for (what, says) in hostile() {
        let host = listen(says).await;
        let pool = Pool::new(&settings(vec![host.clone()]));
        let begun = Instant::now();
        let fault = pool.ask(request(), within(400)).await.expect_err(what);
        assert!(begun.elapsed() < Duration::from_millis(700), "{what}: {:?}", begun.elapsed());
        assert_eq!(fault.effect, Effect::Unknown, "{what}: a write could have happened: {fault:?}");
        assert!(fault.error.message.len() < 300, "{what}: {fault:?}");

        let pool = Pool::new(&settings(vec![host, double.hosts().remove(0)]));
        for _ in 0..6 {
            let begun = Instant::now();
            pool.ask(request(), within(2000)).await.unwrap_or_else(|fault| panic!("{what}: {fault:?}"));
            assert!(begun.elapsed() < Duration::from_millis(1800), "{what}: {:?}", begun.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_nobody_asked_for_are_never_taken_for_the_next_reply() {
    let found = GetResp {
        content: vec![Content { value: Bytes::from_static(b"another's"), ..Content::default() }],
        ..GetResp::default()
    };
    // The right reply, and behind it one of nobody's.
    let both = [framed(10, &[]), framed(10, &found.encode_to_vec())].concat();
    let pool = Pool::new(&settings(vec![listen(Says::Hangs(both)).await]));
    for _ in 0..5 {
        let reply = pool.ask(request(), within(2000)).await.unwrap();
        assert!(reply.content.is_empty(), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_among_such_nodes_refuses_at_once_and_stops_when_told() {
    let mut hosts = Vec::new();
    for (_, says) in hostile() {
        hosts.push(listen(says).await);
    }
    let riak = Riak::open(&settings(hosts)).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    let refused = write(&riak, put("k", "a", 1), within(5000)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{refused:?}");
    assert!(Backend::health(&riak).is_err() && begun.elapsed() < Duration::from_millis(500));
    Backend::close(&riak).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_declared_length_takes_no_memory() {
    // 128 MiB are declared and 10 bytes come: reading ends with them.
    let declared = u32::try_from(FRAME_BYTES_MAX).unwrap().to_be_bytes();
    let bytes = [&declared[..], &[10; 10]].concat();
    let error = wire::read_frame(&mut &bytes[..]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

proptest::proptest! {
    /// Whatever bytes arrive, reading them ends with a frame or an error.
    #[test]
    fn no_bytes_are_too_odd_to_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut rest = &bytes[..];
            while let Ok(frame) = wire::read_frame(&mut rest).await {
                let _ = wire::reply::<GetReq>(frame);
            }
        });
        let _ = wire::reply::<GetReq>(wire::Frame { code: 10, message: bytes.clone().into() });
        let _ = wire::reply::<GetReq>(wire::Frame { code: 0, message: bytes.into() });
    }
}
