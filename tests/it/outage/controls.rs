//! What operators' commands refuse, and how; and a worker that has known nothing but the outage.

use bytes::Bytes;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_requests_are_judged_as_any_other_and_settings_go_before_the_queue() {
    let (server, rabbit, redis) = blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::shared()));
    let queueing = setup(&server.database(), rabbit, redis, "");
    let rest = queueing.rest.replace("outage_queue", "through");
    let worker = blocking(|| Worker::start(queueing.rest(&rest)));
    blocking(|| wait_whole(&worker));
    let caller = Caller::of(&worker).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");

    // The only worker would not serve the namespace any more.
    let refused = blocking(|| datastore(&worker, &["queue", "switch", "n", "outage_queue"]));
    assert!(refused.code == 1 && refused.stderr.contains("change the settings first"), "{refused:?}");
    assert!(!refused.stderr.contains("stays so"), "nothing was begun: {refused:?}");
    assert_eq!(caller.call("put", json!({"key": "k", "value": 2})).await["outcome"], "applied");
    let none = blocking(|| datastore(&worker, &["queue", "replay", "--id", "none"]));
    assert!(none.code == 1 && none.stderr.contains("no dead letter"), "{none:?}");

    let answer = async |command: &str, body: &'static str| {
        let subject = format!("{}.ctl.{command}", caller.prefix);
        let reply = caller.nats.request(subject, Bytes::from_static(body.as_bytes())).await.unwrap();
        let header = |name: &str| {
            reply
                .headers
                .as_ref()
                .and_then(|headers| headers.get(name))
                .map(|value| value.as_str().to_owned())
        };
        let body: Json = serde_json::from_slice(&reply.payload).unwrap();
        (body, header("Nats-Service-Error"), header("Nats-Service-Error-Code"))
    };
    let rubbish = [
        ("receipt", r#"["n","k","00"]"#),
        ("queue_status", "[]"),
        ("queue_list", r#" {"limit":1}"#),
        ("queue_replay", r#"{"limit":1,"id":"a","id":null}"#),
        ("queue_replay", r#"{"limit":"many"}"#),
        ("queue_purge", r#"{"limit":1}"#),
        ("warm", r#"{"namespace":"n","other":1}"#),
    ];
    for (command, body) in rubbish {
        let (told, message, code) = answer(command, body).await;
        let error = &told["error"];
        assert_eq!(error["code"], "invalid_argument", "{command} {body}: {told}");
        if command != "warm" {
            assert_eq!((&error["version"], &error["details"]), (&json!(""), &json!([])), "{told}");
            assert_eq!(
                (message.as_deref(), code.as_deref()),
                (error["message"].as_str(), Some("400")),
                "{told}"
            );
        }
    }
    let (told, message, _) = answer("queue_replay", r#"{"limit":1,"reason":null,"id":"none"}"#).await;
    assert_eq!((&told["applied"], message), (&json!(0), None), "null is absent: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_started_in_an_outage_goes_on_queueing_without_redis() {
    let (mut server, rabbit, mut redis) =
        blocking(|| (Postgres::start(&[]), Rabbit::shared(), Redis::start(&[])));
    let setup = setup(&server.database(), rabbit, &redis, "");
    let first = blocking(|| Worker::start(setup.clone()));
    let caller = Caller::of(&first).await;
    assert_eq!(caller.call("put", json!({"key": "k", "value": 1})).await["outcome"], "applied");
    drop(first);
    blocking(|| server.kill9());
    let second = blocking(|| Worker::start(setup));
    let queued = |reply: &Json| reply["outcome"] == "queued";
    caller.until("it is queued", "put", json!({"key": "k", "value": 2}), queued).await;
    blocking(|| redis.kill9());
    for n in 0..10 {
        let reply = caller.call("put", json!({"key": format!("k{n}"), "value": n})).await;
        assert_eq!(
            (&reply["outcome"], &reply["read_your_write"]),
            (&json!("queued"), &json!(false)),
            "{reply}"
        );
    }
    blocking(|| {
        redis.restart();
        server.restart();
    });
    let stands = |reply: &Json| reply["record"]["value"] == 9 && reply["pending"] == false;
    caller.until("it stands", "get", json!({"key": "k9"}), stands).await;
    drop(second);
}
