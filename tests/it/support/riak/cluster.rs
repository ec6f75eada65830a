//! What the nodes of a double know together: bucket types, replicas, who is up; and what each request does to them.
//!
//! A key has `n_val` replicas on neighbouring places of a ring; place `p` is at home on node `p % nodes`. Where that node is
//! down, the next one stands in with a replica of its own, which is empty at first, as Riak's fallbacks are.
//!
//! A write is answered once its quorum has it. With a lag, the other replicas get it later, and so does what a read repairs:
//! until then replicas differ although every node is well.

mod index;
mod message;
mod ring;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::fields::{Field, Fields};
use super::object::{Clock, Content, Object, Rule};
use message::{bad_index, contents, empty, properties, unknown};
use ring::distinct;

/// Symbolic quorum values.
const ONE: u64 = 4_294_967_294;
const QUORUM: u64 = 4_294_967_293;
const ALL: u64 = 4_294_967_292;
const DEFAULT: u64 = 4_294_967_291;
/// Largest object, and most siblings, as a node is configured by default.
const OBJECT_BYTES_MAX: usize = 50 * 1024 * 1024;
const SIBLINGS_MAX: usize = 100;
/// Largest key.
const KEY_BYTES_MAX: usize = 65_536;

/// What happens to a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteMode {
    Keep,
    After(Duration),
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Up,
    /// Takes connections and requests and says nothing, to its clients and to the other nodes.
    Silent,
    /// Listens before its store is there.
    Starting,
    /// Has a store, but not enough replicas yet.
    Joining,
    Down,
}

#[derive(Clone, Debug)]
pub(crate) struct BucketType {
    pub(crate) allow_mult: bool,
    pub(crate) last_write_wins: bool,
    pub(crate) dvv: bool,
    pub(crate) write_once: bool,
    pub(crate) consistent: bool,
    pub(crate) datatype: Option<&'static str>,
    pub(crate) n_val: u64,
    pub(crate) pr: u64,
    pub(crate) pw: u64,
    pub(crate) dw: u64,
    pub(crate) notfound_ok: bool,
    pub(crate) basic_quorum: bool,
}

impl BucketType {
    /// A new type as Riak makes it.
    pub(crate) fn new() -> BucketType {
        BucketType {
            allow_mult: true,
            last_write_wins: false,
            dvv: true,
            write_once: false,
            consistent: false,
            datatype: None,
            n_val: 3,
            pr: 0,
            pw: 0,
            dw: QUORUM,
            notfound_ok: true,
            basic_quorum: false,
        }
    }

    fn rule(&self) -> Rule {
        match (self.last_write_wins || self.write_once, self.allow_mult, self.dvv) {
            (true, ..) => Rule::LastWriter,
            (_, false, _) => Rule::Latest,
            (_, true, true) => Rule::Siblings,
            (_, true, false) => Rule::Ancestors,
        }
    }
}

/// Type, bucket, key.
type At = (String, Vec<u8>, Vec<u8>);

#[derive(Clone)]
struct Replica {
    object: Object,
    since: Instant,
}

/// A state of a key on its way to a replica.
struct Late {
    due: Instant,
    place: (usize, usize),
    at: At,
    object: Object,
    rule: Rule,
}

pub(crate) struct Cluster {
    pub(crate) health: Vec<Health>,
    pub(crate) types: BTreeMap<String, BucketType>,
    /// `leveled` has indexes, `bitcask` has none.
    pub(crate) indexes: bool,
    pub(crate) delete_mode: DeleteMode,
    /// How far the nodes' clocks are off.
    pub(crate) clock_offset_s: i64,
    /// How long a write, or a repair, may take on its way to replicas that nobody waits for.
    pub(crate) lag: Duration,
    /// What is on its way.
    late: Vec<Late>,
    /// Keys whose reads fail.
    pub(crate) unreadable: BTreeSet<Vec<u8>>,
    /// By place and the node that holds it.
    replicas: HashMap<(usize, usize), BTreeMap<At, Replica>>,
    /// Keys that are nothing but tombstones somewhere.
    tombstones: BTreeSet<At>,
    /// Order in which replicas answer, and what generated names are made of.
    random: u64,
    /// Requests by message code.
    pub(crate) requests: BTreeMap<u8, usize>,
}

/// What a node does about a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(u8, Fields),
    /// Several frames, the last of which says that it is.
    Stream(Vec<(u8, Fields)>),
    Error(String),
    /// An error with a stack trace, then the end of the connection.
    Crash(&'static str),
    /// An error after so many milliseconds.
    TimedOut(u64),
    Never,
}

use Answer::{Crash, Error, Reply};

fn says(text: impl Into<String>) -> Answer {
    Error(text.into())
}

impl Cluster {
    pub(crate) fn new(nodes: usize) -> Cluster {
        let default = BucketType { allow_mult: false, ..BucketType::new() };
        Cluster {
            health: vec![Health::Up; nodes],
            types: BTreeMap::from([("default".to_owned(), default)]),
            indexes: true,
            delete_mode: DeleteMode::After(Duration::from_secs(3)),
            clock_offset_s: 0,
            lag: Duration::ZERO,
            late: Vec::new(),
            unreadable: BTreeSet::new(),
            replicas: HashMap::new(),
            tombstones: BTreeSet::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            requests: BTreeMap::new(),
        }
    }

    /// Does what a request asks for at a node.
    pub(crate) fn answer(&mut self, node: usize, code: u8, message: &[u8]) -> Answer {
        *self.requests.entry(code).or_default() += 1;
        self.arrive();
        if self.health[node] == Health::Starting && ![1, 7].contains(&code) {
            return says(format!("Unknown message code: {code}"));
        }
        match code {
            1 | 7 if !message.is_empty() => return Crash("{gpb_error,{decoding_failure"),
            0 | 27 | 90.. => return says(unknown(code)),
            10 => return Crash("function_clause:[{riak_kv_pb_object"),
            _ => {}
        }
        let Some(fields) = Fields::read(message) else { return Crash("{gpb_error,{decoding_failure") };
        match code {
            1 => Reply(2, Fields::default()),
            7 => Reply(8, Fields::default().with(1, "riak@127.0.0.1").with(2, "3.2.3")),
            9 => self.get(node, &fields),
            11 => self.put(node, &fields),
            13 => self.delete(node, &fields),
            19 => self.bucket(&fields),
            25 => self.index(node, &fields),
            31 => self.bucket_type(&fields),
            other => panic!("the double does not know message code {other}"),
        }
    }

    // === get ===

    fn get(&mut self, node: usize, fields: &Fields) -> Answer {
        let (Some(bucket), key) = (fields.bytes(1), fields.bytes(2)) else {
            return Crash("function_clause:[{riak_kv_pb_object");
        };
        if let Some(error) = empty(&[("Bucket", Some(bucket)), ("Key", key), ("Type", fields.bytes(13))]) {
            return error;
        }
        let Some((name, kind)) = self.kind(fields.bytes(13)) else { return says("no_type") };
        let Some(key) = key else { return Reply(10, Fields::default()) };
        let asked = Asked::new(&kind, fields.number(12), fields.flag(11));
        let (r, pr) = (asked.quorum(fields.number(3), QUORUM), asked.quorum(fields.number(4), kind.pr));
        let confirms = fields.number(14).unwrap_or(0);
        let n_val = match asked.check(&[r, pr, confirms]) {
            Ok(n_val) => n_val,
            Err(error) => return error,
        };
        if self.unreadable.contains(key) {
            return says("timeout");
        }
        let at = (name, bucket.to_vec(), key.to_vec());
        let places = self.places(&at, n_val, asked.sloppy);
        if self.health[node] == Health::Joining {
            return says(format!("{{insufficient_vnodes,0,need,{}}}", r.max(1)));
        }
        if (places.len() as u64) < r.max(1) {
            return says(format!("{{insufficient_vnodes,{},need,{}}}", places.len(), r.max(1)));
        }
        let nodes = distinct(&places);
        if confirms > nodes {
            return says(format!("{{insufficient_nodes,{nodes},need,{confirms}}}"));
        }
        let primaries = self.primaries(&places);
        if pr > primaries {
            return says(format!("{{pr_val_unsatisfied,{pr},{primaries}}}"));
        }
        let timeout = fields.number(10);
        self.reap(&at);
        let replies = self.replies(&places);
        let answering = replies.iter().filter(|place| self.is_primary(place)).count() as u64;
        if (replies.len() as u64) < r.max(1) || answering < pr {
            return Answer::TimedOut(timeout.unwrap_or(60_000));
        }
        // The first so many that answer, and as many more as it takes to have the primaries.
        let mut heard: Vec<(usize, usize)> = Vec::new();
        for place in replies {
            let heard_primaries = heard.iter().filter(|place| self.is_primary(place)).count() as u64;
            if (heard.len() as u64) < r.max(1) || heard_primaries < pr {
                heard.push(place);
            }
        }
        let rule = kind.rule();
        let found: Vec<Object> = heard.iter().filter_map(|place| self.object(place, &at)).collect();
        let notfound_ok = fields.flag(6).unwrap_or(kind.notfound_ok);
        if !notfound_ok && !found.is_empty() && (found.len() as u64) < r {
            return says(format!("{{r_val_unsatisfied,{r},{}}}", found.len()));
        }
        let object = found.into_iter().reduce(|one, other| one.merged(&other, rule));
        self.repair(&places, &at, rule);
        self.found(object, fields)
    }

    fn found(&self, object: Option<Object>, fields: &Fields) -> Answer {
        let Some(object) = object else { return Reply(10, Fields::default()) };
        let clock = object.clock.write();
        if object.is_tombstone() {
            let shows = fields.flag(9) == Some(true);
            return Reply(10, if shows { Fields::default().with(2, clock) } else { Fields::default() });
        }
        if let Some(seen) = fields.bytes(7) {
            let Some(seen) = Clock::read(seen) else { return Crash("data_error:[{zlib,inflate_nif") };
            if seen == object.clock {
                return Reply(10, Fields::default().with_number(3, 1));
            }
        }
        Reply(10, contents(&object, fields.flag(8) == Some(true)).with(2, clock))
    }

    // === put ===

    fn put(&mut self, node: usize, fields: &Fields) -> Answer {
        let Some(bucket) = fields.bytes(1) else { return Crash("function_clause:[{riak_kv_pb_object") };
        let key = fields.bytes(2);
        if let Some(error) = empty(&[("Bucket", Some(bucket)), ("Key", key), ("Type", fields.bytes(16))]) {
            return error;
        }
        let conditional = fields.flag(9) == Some(true) || fields.flag(10) == Some(true);
        let Some((name, kind)) = self.kind(fields.bytes(16)) else {
            return if conditional { Crash("{case_clause,{error,no_type}}") } else { says("no_type") };
        };
        if key.is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            return Crash("{badmatch,{error,key_too_large}}");
        }
        let Some(content) = fields.bytes(4).and_then(Fields::read) else {
            return Crash("{badrecord,undefined}");
        };
        let Some(seen) = Clock::read(fields.bytes(3).unwrap_or_default()) else {
            return Crash("data_error:[{zlib,inflate_nif");
        };
        let asked = Asked::new(&kind, fields.number(15), fields.flag(14));
        let (w, dw) = (asked.quorum(fields.number(5), QUORUM), asked.quorum(fields.number(6), kind.dw));
        let pw = asked.quorum(fields.number(8), kind.pw);
        let confirms = fields.number(17).unwrap_or(0);
        let generated = key.is_none().then(|| self.name().into_bytes());
        let at = (name, bucket.to_vec(), key.map(<[u8]>::to_vec).or(generated.clone()).unwrap());
        if self.health[node] == Health::Joining {
            return says("all_nodes_down");
        }
        self.reap(&at);
        let rule = kind.rule();
        if conditional && let Some(error) = self.condition(&at, fields, &seen, rule) {
            return error;
        }
        if let Some(error) = bad_index(&content) {
            return error;
        }
        let size = content.bytes(1).map_or(0, <[u8]>::len);
        if size + 1024 > OBJECT_BYTES_MAX {
            return says(format!("{{too_large,{}}}", size + 43));
        }
        let n_val = match asked.check(&[w, dw, pw, confirms]) {
            Ok(n_val) => n_val,
            Err(error) => return error,
        };
        let places = self.places(&at, n_val, asked.sloppy);
        if (places.len() as u64) < w.max(dw).max(1) {
            return says(format!("{{insufficient_vnodes,{},need,{}}}", places.len(), w.max(dw).max(1)));
        }
        let primaries = self.primaries(&places);
        if pw > primaries {
            return says(format!("{{pw_val_unsatisfied,{pw},{primaries}}}"));
        }
        let waits_for = (w.max(dw), pw);
        let stored = match self.store(node, &places, &at, rule, &seen, self.written(&content), waits_for) {
            Ok(Some(object)) => object,
            Ok(None) => return Answer::TimedOut(fields.number(12).unwrap_or(60_000)),
            Err(siblings) => return says(format!("{{too_many_siblings,{siblings}}}")),
        };
        let replies = self.replies(&places);
        let answering = replies.iter().filter(|place| self.is_primary(place)).count() as u64;
        if (replies.len() as u64) < w.max(dw) || answering < pw {
            return Answer::TimedOut(fields.number(12).unwrap_or(60_000));
        }
        let nodes = distinct(&places);
        if confirms > nodes {
            return says(format!("{{node_confirms_val_unsatisfied,{confirms},{nodes}}}"));
        }
        let (body, head) = (fields.flag(7) == Some(true), fields.flag(11) == Some(true));
        let mut reply = Fields::default();
        if (body || head) && !kind.write_once {
            reply = contents(&stored, head).with(2, stored.clock.write());
        }
        if let Some(key) = generated {
            reply = reply.with(3, key);
        }
        Reply(12, reply)
    }

    /// Puts at the first replica that answers, the node's own if it has one, and sends the outcome to the others: at once to
    /// as many as are waited for, and as many primaries.
    #[expect(clippy::too_many_arguments, reason = "a request as it was read")]
    fn store(
        &mut self,
        node: usize,
        places: &[(usize, usize)],
        at: &At,
        rule: Rule,
        seen: &Clock,
        content: Content,
        (quorum, primaries): (u64, u64),
    ) -> Result<Option<Object>, usize> {
        let replies = self.replies(places);
        let Some(coordinator) = replies.iter().find(|place| place.1 == node).or(replies.first()).copied()
        else {
            return Ok(None);
        };
        let coordinator = &coordinator;
        let actor = [&b"place"[..], &[coordinator.0 as u8, coordinator.1 as u8, 0]].concat();
        let before = self.object(coordinator, at).unwrap_or_default();
        let after = before.put(rule, seen, &actor, content);
        if after.contents.len() > SIBLINGS_MAX {
            return Err(after.contents.len());
        }
        let (mut reached, mut reached_primaries) = (0, 0);
        let others = replies.iter().filter(|place| *place != coordinator);
        for place in [*coordinator].into_iter().chain(others.copied()) {
            if self.lag > Duration::ZERO && reached >= quorum.max(1) && reached_primaries >= primaries {
                self.send_late(place, at, after.clone(), rule);
                continue;
            }
            reached += 1;
            reached_primaries += u64::from(self.is_primary(&place));
            let held = self.object(&place, at);
            // The last writer wins at each replica by being the last.
            let merges = place != *coordinator && rule != Rule::LastWriter;
            let merged = held.filter(|_| merges).map(|held| held.merged(&after, rule));
            self.set(&place, at, merged.unwrap_or_else(|| after.clone()));
        }
        Ok(Some(after))
    }

    fn condition(&self, at: &At, fields: &Fields, seen: &Clock, rule: Rule) -> Option<Answer> {
        let all = self.places(at, 3, true);
        let object = all.iter().filter_map(|place| self.object(place, at));
        let object = object.reduce(|one, other| one.merged(&other, rule));
        let live = object.as_ref().filter(|object| !object.is_tombstone());
        match live {
            Some(_) if fields.flag(10) == Some(true) => Some(says("match_found")),
            None if fields.flag(10) == Some(true) => None,
            None => Some(says("notfound")),
            Some(live) if live.clock != *seen => Some(says("modified")),
            Some(_) => None,
        }
    }

    // === delete ===

    fn delete(&mut self, node: usize, fields: &Fields) -> Answer {
        let (Some(bucket), Some(key)) = (fields.bytes(1), fields.bytes(2)) else {
            return Crash("function_clause:[{riak_kv_pb_object");
        };
        let Some((name, kind)) = self.kind(fields.bytes(13)) else { return says("no_type") };
        let seen = match fields.bytes(4).map(Clock::read) {
            Some(None) => return Crash("data_error:[{zlib,inflate_nif"),
            Some(seen) => seen,
            None => None,
        };
        let asked = Asked::new(&kind, fields.number(12), fields.flag(11));
        let before = [fields.number(3), fields.number(5), fields.number(7)];
        let before: Vec<u64> = before.iter().map(|each| asked.quorum(*each, 0)).collect();
        if let Err(error) = asked.check(&before) {
            return error;
        }
        let at = (name, bucket.to_vec(), key.to_vec());
        self.reap(&at);
        let rule = kind.rule();
        let places = self.places(&at, kind.n_val, asked.sloppy);
        let found = places.iter().filter_map(|place| self.object(place, &at));
        let found = found.reduce(|one, other| one.merged(&other, rule));
        let seen = match seen {
            Some(seen) => seen,
            None => match found {
                Some(object) if !object.is_tombstone() => object.clock,
                _ => return Reply(14, Fields::default()),
            },
        };
        let after = [fields.number(6), fields.number(8), fields.number(9)];
        let after: Vec<u64> = after.iter().map(|each| asked.quorum(*each, 0)).collect();
        if let Err(error) = asked.check(&after) {
            return error;
        }
        let tombstone = Content { deleted: true, ..self.written(&Fields::default()) };
        let waits_for = (after[0].max(after[2]), after[1]);
        match self.store(node, &places, &at, rule, &seen, tombstone, waits_for) {
            Ok(Some(_)) => Reply(14, Fields::default()),
            Ok(None) => Answer::TimedOut(fields.number(10).unwrap_or(60_000)),
            Err(siblings) => says(format!("{{too_many_siblings,{siblings}}}")),
        }
    }

    // === properties ===

    fn bucket(&self, fields: &Fields) -> Answer {
        let Some((name, kind)) = self.kind(fields.bytes(2)) else {
            let name = String::from_utf8_lossy(fields.bytes(2).unwrap_or_default()).into_owned();
            return says(format!("No bucket-type named '{name}'"));
        };
        Reply(20, Fields::default().with(1, properties(&kind, name == "default").write()))
    }

    fn bucket_type(&self, fields: &Fields) -> Answer {
        let Some((name, kind)) = self.kind(fields.bytes(1)) else {
            let name = String::from_utf8_lossy(fields.bytes(1).unwrap_or_default()).into_owned();
            return says(format!("Invalid bucket type: <<{name:?}>>"));
        };
        Reply(20, Fields::default().with(1, properties(&kind, name == "default").write()))
    }

    fn kind(&self, name: Option<&[u8]>) -> Option<(String, BucketType)> {
        let name = String::from_utf8(name.unwrap_or(b"default").to_vec()).ok()?;
        let kind = self.types.get(&name)?.clone();
        Some((name, kind))
    }

    /// A content as it is stored.
    #[expect(clippy::disallowed_methods, reason = "a node has a clock of its own")]
    fn written(&self, content: &Fields) -> Content {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let offset = self.clock_offset_s * 1_000_000;
        let kept = content.0.iter().filter(|(number, _)| [2, 3, 4, 6, 9, 10].contains(number));
        let meta = kept.map(|(number, field)| {
            // A pair without a value comes back with the text of Erlang's `undefined`.
            let field = match field {
                Field::Bytes(pair) if *number == 9 => match Fields::read(pair) {
                    Some(pair) if pair.bytes(2).is_none() => Field::Bytes(pair.with(2, "undefined").write()),
                    _ => field.clone(),
                },
                _ => field.clone(),
            };
            (*number, field)
        });
        Content {
            dot: (Vec::new(), 0),
            value: content.bytes(1).unwrap_or_default().to_vec(),
            meta: Fields(meta.collect()),
            vtag: format!("{:x}", now.as_nanos()),
            modified_us: u64::try_from(now.as_micros()).unwrap().saturating_add_signed(offset),
            deleted: false,
        }
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn name(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}

/// The quorums of one request.
struct Asked {
    bucket_n_val: u64,
    n_val: Option<u64>,
    sloppy: bool,
}

impl Asked {
    fn new(kind: &BucketType, n_val: Option<u64>, sloppy: Option<bool>) -> Asked {
        Asked { bucket_n_val: kind.n_val, n_val, sloppy: sloppy.unwrap_or(true) }
    }

    fn n_val(&self) -> u64 {
        self.n_val.unwrap_or(self.bucket_n_val)
    }

    fn quorum(&self, asked: Option<u64>, default: u64) -> u64 {
        match asked.filter(|asked| *asked != DEFAULT).unwrap_or(default) {
            ONE => 1,
            QUORUM => self.n_val() / 2 + 1,
            ALL => self.n_val(),
            number => number,
        }
    }

    fn check(&self, quorums: &[u64]) -> Result<u64, Answer> {
        match self.n_val {
            Some(asked) if asked > self.bucket_n_val => Err(says(format!("{{n_val_violation,{asked}}}"))),
            _ if quorums.iter().any(|each| *each > self.n_val()) => {
                Err(says(format!("{{n_val_violation,{}}}", self.n_val())))
            }
            _ => Ok(self.n_val()),
        }
    }
}
