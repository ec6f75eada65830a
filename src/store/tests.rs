//! Damaged records: whatever bit of one is flipped, its readers are told which record of which backend it is, and
//! nobody else is.

use std::time::Duration;

use bytes::Bytes;

use super::policy::{Packed, PartitionBy, PolicySettings};
use super::*;
use crate::backend::memory::Memory;
use crate::backend::{Action, Found, Write, Written};
use crate::codec::json::parse_value;
use crate::codec::stored::encode;
use crate::model::op::{self, Batch, BatchOp, Expiry, Get, Lifetime, Path, Scan, Shape};
use crate::model::reply::BatchResult;
use crate::model::request::ChangeKind;
use crate::model::{Outcome, Record, Value};

const GOLDEN: [&str; 2] =
    [include_str!("../../tests/golden/format-1.ndjson"), include_str!("../../tests/golden/format-2.ndjson")];

struct Fixture {
    store: Store,
    backend: Arc<dyn DynBackend>,
    hlc: u64,
}

fn fixture() -> Fixture {
    let settings = PolicySettings {
        backend: "main".to_owned(),
        consistency: Consistency::Strong,
        max_staleness_ms: 0,
        partition_by: PartitionBy::Key,
        partition_delimiter: "/".to_owned(),
        ttl_ms: 0,
        cache_ttl_ms: 0,
        max_stale_ms: 0,
        durability: super::policy::Durability::Through,
        compression: Packed::Auto,
        max_value_bytes: 1 << 20,
    };
    let backend: Arc<dyn DynBackend> = Arc::new(Memory::new());
    let policies = BTreeMap::from([("n".to_owned(), settings)]);
    let backends = BTreeMap::from([("main".to_owned(), backend.clone())]);
    let cache = Arc::new(Cache::none());
    let store = Store::new(&policies, &backends, cache, Arc::default(), 1).unwrap();
    Fixture { store, backend, hlc: 1 }
}

impl Fixture {
    fn call(&self, encoding: Encoding) -> Call {
        let namespace = Namespace::parse("n").unwrap();
        Call {
            policy: self.store.policy(&namespace).unwrap(),
            namespace,
            deadline: Instant::now() + Duration::from_secs(10),
            timeout_ms: 10_000,
            now_ms: 1,
            encoding,
            reply_bytes_max: 1 << 20,
        }
    }

    /// Puts bytes where a record's are, behind the store's back.
    async fn place(&mut self, key: &str, body: Bytes) {
        self.hlc += 1;
        let write = Write {
            at: self.call(Encoding::Protobuf).row_key(&Key::parse(key).unwrap()),
            action: Action::Put { body, expiry: Expiry::New(Lifetime::Forever) },
            precondition: None,
            op: None,
            proposed: Version { hlc: self.hlc, origin: 1 },
            taken_at_ms: 1,
        };
        let written = self.backend.write(vec![write], Instant::now() + Duration::from_secs(10)).await;
        assert!(matches!(written[..], [Ok(Written::Applied { .. })]), "{written:?}");
    }

    /// Whether the record reads, the same in each way there is to read it.
    async fn read(&self, key: &str, shape: Shape, encoding: Encoding) -> Result<()> {
        let get = Get {
            key: Key::parse(key).unwrap(),
            consistency: Consistency::Default,
            max_staleness_ms: None,
            min_version: None,
            shape,
        };
        let call = self.call(encoding);
        let alone = self.store.get(&call, get.clone()).await.map(drop);
        let batch =
            self.store.batch(&call, Batch { ops: vec![BatchOp::Get(Ok(get))], atomic: false }).await.unwrap();
        let refused = match &batch {
            Batched::Encoded(_) => None,
            Batched::Reply(batch) => {
                let [BatchResult::Get(reply)] = &batch.results[..] else { panic!("{batch:?}") };
                reply.error.as_ref().map(|error| error.code)
            }
        };
        assert_eq!(refused, alone.as_ref().err().map(|error| error.code));
        alone
    }

    /// The keys of all pages, and the errors between them.
    async fn scan(&self) -> (Vec<String>, Vec<Error>) {
        let (mut keys, mut errors, mut cursor) = (Vec::new(), Vec::new(), String::new());
        loop {
            let scan = Scan {
                prefix: String::new(),
                start: String::new(),
                end: String::new(),
                limit: 100,
                max_bytes: 1 << 20,
                cursor,
                reverse: false,
                keys_only: false,
                consistency: Consistency::Default,
            };
            let page = self.store.scan(&self.call(Encoding::Protobuf), scan).await.unwrap();
            keys.extend(page.records.iter().map(|Record { key, .. }| key.as_str().to_owned()));
            errors.extend(page.error);
            cursor = page.cursor;
            if cursor.is_empty() {
                return (keys, errors);
            }
        }
    }
}

fn check(error: &Error, what: &str) {
    assert_eq!(error.code, Code::Corrupt, "{what}: {error:?}");
    let named = error.message.starts_with("record \"damaged\" on backend \"main\" is damaged: ");
    assert!(named, "{what}: {}", error.message);
}

#[tokio::test]
async fn any_flipped_bit_of_any_record_is_told_and_the_rest_of_a_scan_is_answered() {
    let mut fixture = fixture();
    let good = Document {
        value: parse_value(br#"{"a":[1,2]}"#).unwrap(),
        content_type: String::new(),
        updated_at_ms: 1,
        schema: 0,
    };
    for key in ["before", "further"] {
        fixture.place(key, encode(&good, Compression::None)).await;
    }
    let lines = GOLDEN.iter().flat_map(|file| file.lines());
    let (mut records, mut flips) = (0, 0);
    for line in lines {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        let record = unhex(golden["record"].as_str().unwrap());
        records += 1;
        fixture.place("damaged", record.clone().into()).await;
        fixture.read("damaged", Shape::Whole, Encoding::Protobuf).await.unwrap();
        assert_eq!(fixture.scan().await.0, ["before", "damaged", "further"]);
        for bit in 0..record.len() * 8 {
            flips += 1;
            let what = format!("{} bit {bit}", golden["name"]);
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fixture.place("damaged", flipped.into()).await;
            let json = Encoding::Json { exact: false };
            for (shape, encoding) in [
                (Shape::Whole, Encoding::Protobuf),
                (Shape::Whole, json),
                (Shape::Head, json),
                (Shape::Fields(vec![Path::parse("a").unwrap()]), json),
            ] {
                check(&fixture.read("damaged", shape, encoding).await.unwrap_err(), &what);
            }
            let (keys, errors) = fixture.scan().await;
            assert_eq!(keys, ["before", "further"], "{what}");
            let [error] = &errors[..] else { panic!("{what}: {errors:?}") };
            check(error, &what);
        }
    }
    assert!(records > 40 && flips > 10_000, "{records} records, {flips} flips");
}

#[tokio::test]
async fn documents_reach_the_backend_packed_as_the_namespace_says_and_read_the_same() {
    let words = Value::from("the same words again and again, ".repeat(100).as_str());
    for (compression, packing) in [(Packed::Auto, 2), (Packed::None, 0), (Packed::Lz4, 1), (Packed::Zstd, 2)]
    {
        let fixture = fixture();
        let call = fixture.call(Encoding::Protobuf);
        let settings = PolicySettings { compression, ..call.policy.settings.clone() };
        let policy = Arc::new(Policy::new(settings, fixture.backend.clone()));
        let call = Call { policy, ..call };
        let key = |name: &str| Key::parse(name).unwrap();
        let write = |name: &str, action| op::Write {
            key: key(name),
            action,
            precondition: None,
            op: None,
            return_record: false,
        };
        let put = |name| {
            let expiry = Expiry::New(Lifetime::Forever);
            write(name, op::Action::Put { value: words.clone(), content_type: String::new(), expiry })
        };
        let set = op::Change { path: Path::parse("words").unwrap(), kind: ChangeKind::Set(words.clone()) };
        let expiry = Expiry::New(Lifetime::Forever);
        let update = op::Action::Update { changes: vec![set], create: true, expiry };
        let touch = op::Action::Touch { lifetime: Lifetime::Forever };
        for write in [put("put"), write("updated", update), put("touched"), write("touched", touch)] {
            let reply = fixture.store.write(&call, write).await;
            assert_eq!(reply.outcome, Outcome::Applied, "{compression:?}: {reply:?}");
        }
        let ops = vec![BatchOp::Write(Ok(put("batched")))];
        fixture.store.batch(&call, Batch { ops, atomic: false }).await.unwrap();
        let ops = vec![BatchOp::Write(Ok(put("atomic")))];
        fixture.store.batch(&call, Batch { ops, atomic: true }).await.unwrap();
        for name in ["put", "updated", "touched", "batched", "atomic"] {
            let deadline = call.deadline;
            let found = fixture.backend.read(vec![call.row_key(&key(name))], deadline).await;
            let [Ok(Some(Found { live: Some(live), .. }))] = &found[..] else { panic!("{name}: {found:?}") };
            assert_eq!(live.body[2] & 3, packing, "{compression:?} {name}");
            fixture.read(name, Shape::Whole, Encoding::Protobuf).await.unwrap();
        }
    }
}

#[test]
fn no_document_is_longer_than_a_record_may_share_whatever_the_bus_and_the_policy_allow() {
    let fixture = fixture();
    let call = fixture.call(Encoding::Protobuf);
    let settings = PolicySettings { max_value_bytes: usize::MAX, ..call.policy.settings.clone() };
    let policy = Arc::new(Policy::new(settings, fixture.backend.clone()));
    let call = Call { policy, reply_bytes_max: 1 << 30, ..call };
    assert_eq!(call.value_bytes_max(), crate::codec::body::SHARED_BYTES_MAX);
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
