//! What the nodes of a double know together: bucket types, replicas, who is up; and what each request does to them.
//!
//! A key has `n_val` replicas on neighbouring places of a ring; place `p` is at home on node `p % nodes`. Where that node is
//! down, the next one stands in with a replica of its own, which is empty at first, as Riak's fallbacks are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::fields::{Field, Fields};
use super::object::{Clock, Content, Object, Rule};

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

pub(crate) struct Cluster {
    pub(crate) health: Vec<Health>,
    pub(crate) types: BTreeMap<String, BucketType>,
    /// `leveled` has indexes, `bitcask` has none.
    pub(crate) indexes: bool,
    pub(crate) delete_mode: DeleteMode,
    /// How far the nodes' clocks are off.
    pub(crate) clock_offset_s: i64,
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
            replicas: HashMap::new(),
            tombstones: BTreeSet::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            requests: BTreeMap::new(),
        }
    }

    /// Does what a request asks for at a node.
    pub(crate) fn answer(&mut self, node: usize, code: u8, message: &[u8]) -> Answer {
        *self.requests.entry(code).or_default() += 1;
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
        let stored = match self.store(node, &places, &at, rule, &seen, self.written(&content)) {
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

    /// Puts at the first replica that answers, the node's own if it has one, and sends the outcome to the others.
    fn store(
        &mut self,
        node: usize,
        places: &[(usize, usize)],
        at: &At,
        rule: Rule,
        seen: &Clock,
        content: Content,
    ) -> Result<Option<Object>, usize> {
        let replies = self.replies(places);
        let Some(coordinator) = replies.iter().find(|place| place.1 == node).or(replies.first()) else {
            return Ok(None);
        };
        let actor = [&b"place"[..], &[coordinator.0 as u8, coordinator.1 as u8, 0]].concat();
        let before = self.object(coordinator, at).unwrap_or_default();
        let after = before.put(rule, seen, &actor, content);
        if after.contents.len() > SIBLINGS_MAX {
            return Err(after.contents.len());
        }
        for place in replies.clone() {
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
        match self.store(node, &places, &at, rule, &seen, tombstone) {
            Ok(Some(_)) => Reply(14, Fields::default()),
            Ok(None) => Answer::TimedOut(fields.number(10).unwrap_or(60_000)),
            Err(siblings) => says(format!("{{too_many_siblings,{siblings}}}")),
        }
    }

    /// Forgets a tombstone whose time has come, where every primary is up.
    fn reap(&mut self, at: &At) {
        let DeleteMode::After(wait) = self.delete_mode else { return };
        if self.health.iter().any(|health| *health != Health::Up) {
            return;
        }
        if !self.tombstones.contains(at) {
            return;
        }
        for replicas in self.replicas.values_mut() {
            if replicas.get(at).is_some_and(|held| held.object.is_tombstone() && held.since.elapsed() >= wait)
            {
                replicas.remove(at);
            }
        }
    }

    fn reap_overdue(&mut self) {
        for at in self.tombstones.clone() {
            self.reap(&at);
        }
    }

    // === index ===

    fn index(&mut self, node: usize, fields: &Fields) -> Answer {
        let (Some(bucket), Some(index)) = (fields.bytes(1), fields.bytes(2)) else {
            return Crash("function_clause:[{riak_kv_pb_index");
        };
        let stream = fields.flag(8) == Some(true);
        let Some((name, _)) = self.kind(fields.bytes(12)) else {
            return match (stream, fields.number(11)) {
                (true, _) => Crash("{badmatch,{error,no_type}}"),
                (_, Some(timeout)) => Answer::TimedOut(timeout),
                (_, None) => Answer::Never,
            };
        };
        let index = String::from_utf8_lossy(index).into_owned();
        let integers = index.ends_with("_int");
        let every = index == "$bucket";
        if !integers && !every && index != "$key" && !index.ends_with("_bin") {
            return Crash("function_clause:[{riak_index,parse_field");
        }
        let range = fields.number(3) == Some(1);
        let (low, high) = match (range, fields.bytes(4), fields.bytes(5), fields.bytes(6)) {
            (false, Some(key), ..) => (key, key),
            (false, None, ..) => return says("Invalid equality query undefined"),
            (true, _, Some(low), Some(high)) => (low, high),
            (true, _, Some(low), None) => {
                return says(format!(
                    "Invalid range query: <<{:?}>> -> undefined",
                    String::from_utf8_lossy(low)
                ));
            }
            (true, ..) => return says("Invalid range query: undefined -> undefined"),
        };
        if !self.indexes {
            let text = "{indexes_not_supported,riak_kv_bitcask_backend}";
            return says(if stream { format!("{{error,{text}}}") } else { text.to_owned() });
        }
        if fields.bytes(13).is_some() && integers {
            return says("Can not use term regular expression in integer query");
        }
        let (Some(low), Some(high)) = (Term::read(low, integers), Term::read(high, integers)) else {
            return Crash("function_clause:[{riak_index,to_index_query");
        };
        let down = self.health.iter().filter(|health| **health == Health::Down).count();
        if self.health[node] == Health::Joining || (self.health.len() > 1 && down > 1) {
            return says("insufficient_vnodes_available");
        }
        if self.health.contains(&Health::Silent) {
            // Every part of the ring is asked, and one of them does not answer.
            return fields.number(11).map_or(Answer::Never, Answer::TimedOut);
        }
        let after = match fields.bytes(10).map(read_continuation) {
            Some(None) => return Crash("function_clause:[{base64,decode_binary"),
            Some(after) => after,
            None => None,
        };
        self.reap_overdue();
        let most = fields.number(9).map(|most| usize::try_from(most).unwrap());
        let mut found: BTreeSet<(Term, Vec<u8>)> = BTreeSet::new();
        if index == "$key" || every {
            let (low, high) = match (&low, &high) {
                (Term::Text(low), Term::Text(high)) if !every => (low.clone(), Some(high.clone())),
                _ => (Vec::new(), None),
            };
            let low = match &after {
                Some((Term::Text(after), _)) => low.max(after.clone()),
                _ => low,
            };
            let keys = self.keys(&name, bucket, low, high.as_deref(), most.map(|most| most + 1));
            found.extend(keys.into_iter().map(|key| (Term::Text(key.clone()), key)));
        } else {
            for (key, object) in self.objects(&name, bucket) {
                let live = object.contents.iter().filter(|content| !content.deleted);
                for pair in live.flat_map(|content| content.meta.all(10)).filter_map(Fields::read) {
                    let term = pair.bytes(2).and_then(|term| Term::read(term, integers));
                    if pair.bytes(1) == Some(index.as_bytes())
                        && let Some(term) = term.filter(|term| low <= *term && *term <= high)
                    {
                        found.insert((term, key.clone()));
                    }
                }
            }
        }
        let terms = fields.flag(7) == Some(true) && index != "$key" && !every;
        let place = |(term, key): &(Term, Vec<u8>)| match &index[..] {
            _ if !range || index == "$key" || every => (Term::Text(key.clone()), Vec::new()),
            _ => (term.clone(), key.clone()),
        };
        let mut found: Vec<_> = found
            .into_iter()
            .filter(|each| after.as_ref().is_none_or(|after| place(each) > *after))
            .collect();
        let mut continuation = None;
        if let Some(most) = most {
            found.truncate(most);
            if found.len() == most && most > 0 {
                continuation = found.last().map(|last| write_continuation(&place(last)));
            }
        }
        let mut page = Fields::default();
        for (term, key) in &found {
            page = match terms {
                true => page.with(2, Fields::default().with(1, term.text()).with(2, key).write()),
                false => page.with(1, key),
            };
        }
        if !stream {
            let page = continuation.into_iter().fold(page, |page, each| page.with(3, each));
            return Reply(26, page);
        }
        let end = continuation.into_iter().fold(Fields::default(), |end, each| end.with(3, each));
        let mut frames: Vec<(u8, Fields)> = Vec::new();
        if !page.0.is_empty() {
            frames.push((26, page));
        }
        frames.push((26, end.with_number(4, 1)));
        Answer::Stream(frames)
    }

    /// The first keys of a bucket from one on, as far as nodes that are up hold them.
    fn keys(
        &self,
        name: &str,
        bucket: &[u8],
        low: Vec<u8>,
        high: Option<&[u8]>,
        most: Option<usize>,
    ) -> BTreeSet<Vec<u8>> {
        let from = (name.to_owned(), bucket.to_vec(), low);
        let inside = |at: &&At| at.0 == name && at.1 == bucket && high.is_none_or(|high| at.2[..] <= *high);
        let most = most.unwrap_or(usize::MAX);
        let mut keys = BTreeSet::new();
        for (place, held) in &self.replicas {
            if self.health[place.1] != Health::Down {
                let here = held.range(from.clone()..).map(|(at, _)| at).take_while(inside).take(most);
                keys.extend(here.map(|at| at.2.clone()));
            }
        }
        keys.into_iter().take(most).collect()
    }

    /// The objects of a bucket, in the order of their keys.
    fn objects(&self, name: &str, bucket: &[u8]) -> Vec<(Vec<u8>, Object)> {
        let rule = self.types[name].rule();
        let object = |key: Vec<u8>| {
            let at = (name.to_owned(), bucket.to_vec(), key);
            let up = self.replicas.iter().filter(|(place, _)| self.health[place.1] != Health::Down);
            let held = up.filter_map(|(_, held)| held.get(&at).map(|replica| replica.object.clone()));
            let object = held.reduce(|one, other| one.merged(&other, rule))?;
            Some((at.2, object))
        };
        self.keys(name, bucket, Vec::new(), None, None).into_iter().filter_map(object).collect()
    }

    /// All siblings of a key, tombstones included: for tests.
    pub(crate) fn siblings(&self, name: &str, bucket: &[u8], key: &[u8]) -> usize {
        let found = self.objects(name, bucket).into_iter().find(|(at, _)| at == key);
        found.map_or(0, |(_, object)| object.contents.len())
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

    // === replicas ===

    /// The replicas of a key, as places and the nodes that hold them. Nodes that are silent are not known to be.
    fn places(&self, at: &At, n_val: u64, sloppy: bool) -> Vec<(usize, usize)> {
        let nodes = self.health.len();
        let ring = nodes.max(8) / nodes * nodes;
        let first = at.2.iter().fold(at.1.len(), |hash, byte| hash.wrapping_mul(31) + usize::from(*byte));
        let mut places = Vec::new();
        for step in 0..usize::try_from(n_val).unwrap() {
            let place = (first + step) % ring;
            let home = place % nodes;
            let up = |node: &usize| self.health[*node] != Health::Down;
            let holder = (0..nodes).map(|step| (home + step) % nodes).find(up);
            if let Some(holder) = holder.filter(|holder| sloppy || *holder == home) {
                places.push((place, holder));
            }
        }
        places
    }

    fn is_primary(&self, place: &(usize, usize)) -> bool {
        place.0 % self.health.len() == place.1
    }

    fn primaries(&self, places: &[(usize, usize)]) -> u64 {
        places.iter().filter(|place| self.is_primary(place)).count() as u64
    }

    /// Those that answer, in a random order.
    fn replies(&mut self, places: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let mut replies = places.to_vec();
        replies.retain(|place| self.health[place.1] != Health::Silent);
        for at in (1..replies.len()).rev() {
            let other = self.next() as usize % (at + 1);
            replies.swap(at, other);
        }
        replies
    }

    fn object(&self, place: &(usize, usize), at: &At) -> Option<Object> {
        self.replicas.get(place)?.get(at).map(|replica| replica.object.clone())
    }

    fn set(&mut self, place: &(usize, usize), at: &At, object: Object) {
        match object.is_tombstone() {
            true => self.tombstones.insert(at.clone()),
            false => self.tombstones.remove(at),
        };
        let replica = Replica { object, since: Instant::now() };
        self.replicas.entry(*place).or_default().insert(at.clone(), replica);
    }

    /// Read repair: what one of the replicas has, the others get too.
    fn repair(&mut self, places: &[(usize, usize)], at: &At, rule: Rule) {
        let answering = self.replies(places);
        let all = answering.iter().filter_map(|place| self.object(place, at));
        let Some(all) = all.reduce(|one, other| one.merged(&other, rule)) else { return };
        for place in answering {
            if self.object(&place, at).is_none_or(|held| held != all) {
                self.set(&place, at, all.clone());
            }
        }
    }

    /// What stood in for a node is handed to it.
    pub(crate) fn hand_off(&mut self, node: usize) {
        let away: Vec<_> = self.replicas.keys().copied().collect();
        let nodes = self.health.len();
        for place in away.into_iter().filter(|place| place.0 % nodes == node && place.1 != node) {
            for (at, replica) in self.replicas.remove(&place).unwrap_or_default() {
                let home = (place.0, node);
                let rule = self.types[&at.0].rule();
                let held = self.object(&home, &at);
                let merged = held.map_or(replica.object.clone(), |held| held.merged(&replica.object, rule));
                self.set(&home, &at, merged);
            }
        }
    }

    /// A content as it is stored.
    fn written(&self, content: &Fields) -> Content {
        #[allow(clippy::disallowed_methods, reason = "a node has a clock of its own")]
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

/// A term of an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    Number(i64),
    Text(Vec<u8>),
}

impl Term {
    fn read(bytes: &[u8], integers: bool) -> Option<Term> {
        match integers {
            true => std::str::from_utf8(bytes).ok()?.parse().ok().map(Term::Number),
            false => Some(Term::Text(bytes.to_vec())),
        }
    }

    fn text(&self) -> Vec<u8> {
        match self {
            Term::Number(number) => number.to_string().into_bytes(),
            Term::Text(text) => text.clone(),
        }
    }
}

/// As Riak writes it for keys: an Erlang binary in base64. For terms a double may choose, because they are opaque.
fn write_continuation((term, key): &(Term, Vec<u8>)) -> Vec<u8> {
    use base64::Engine;
    let mut bytes = match term {
        Term::Number(number) => [&[b'n'][..], &number.to_be_bytes()].concat(),
        Term::Text(text) => {
            [&[131, 109][..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat()
        }
    };
    bytes.extend_from_slice(key);
    base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes()
}

fn read_continuation(text: &[u8]) -> Option<(Term, Vec<u8>)> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    if let Some(rest) = bytes.strip_prefix(&[131, 109]) {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (term, key) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        return Some((Term::Text(term.to_vec()), key.to_vec()));
    }
    let (number, key) = bytes.strip_prefix(b"n")?.split_first_chunk::<8>()?;
    Some((Term::Number(i64::from_be_bytes(*number)), key.to_vec()))
}

fn unknown(code: u8) -> String {
    match code {
        255 => "Security not enabled; STARTTLS not allowed.".to_owned(),
        code => format!("Unknown message code: {code}"),
    }
}

fn empty(parts: &[(&str, Option<&[u8]>)]) -> Option<Answer> {
    let empty = parts.iter().find(|(_, part)| part.is_some_and(<[u8]>::is_empty))?;
    Some(says(format!("{} cannot be zero-length", empty.0)))
}

fn distinct(places: &[(usize, usize)]) -> u64 {
    places.iter().map(|place| place.1).collect::<BTreeSet<_>>().len() as u64
}

fn bad_index(content: &Fields) -> Option<Answer> {
    for pair in content.all(10).filter_map(Fields::read) {
        let name = String::from_utf8_lossy(pair.bytes(1).unwrap_or_default()).into_owned();
        let value = pair.bytes(2).unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        if name.ends_with("_int") && Term::read(value, true).is_none() {
            let why = format!("field_parsing_failed,{{<<{name:?}>>,<<{text:?}>>}}");
            return Some(says(format!("{{precommit_fail,[{{{why}}}]}}")));
        }
        if !["_int", "_bin"].iter().any(|end| name.ends_with(end)) && !name.starts_with('$') {
            return Some(says(format!("{{precommit_fail,[{{unknown_field_type,<<{name:?}>>}}]}}")));
        }
    }
    None
}

/// Field 1 of a reply, once for each content.
fn contents(object: &Object, head: bool) -> Fields {
    let mut reply = Fields::default();
    for content in &object.contents {
        let mut fields = Fields::default().with(1, if head { &[][..] } else { &content.value });
        let (before, behind): (Vec<_>, Vec<_>) =
            content.meta.0.iter().cloned().partition(|(number, _)| *number < 5);
        let (links, pairs): (Vec<_>, Vec<_>) = behind.into_iter().partition(|(number, _)| *number == 6);
        fields.0.extend(before);
        fields = fields.with(5, &content.vtag);
        fields.0.extend(links);
        fields = fields.with_number(7, content.modified_us / 1_000_000);
        fields = fields.with_number(8, content.modified_us % 1_000_000);
        fields.0.extend(pairs);
        if content.deleted {
            fields = fields.with_number(11, 1);
        }
        reply = reply.with(1, fields.write());
    }
    reply
}

fn properties(kind: &BucketType, default: bool) -> Fields {
    let function = |module, function| Fields::default().with(1, module).with(2, function).write();
    let mut fields = Fields::default()
        .with_number(1, kind.n_val)
        .with_number(2, u64::from(kind.allow_mult))
        .with_number(3, u64::from(kind.last_write_wins))
        .with_number(5, 1)
        .with_number(7, 1)
        .with(8, function("riak_core_util", "chash_std_keyfun"))
        .with(9, function("riak_kv_wm_link_walker", "mapreduce_linkfun"));
    let numbers = [(10, 86_400), (11, 20), (12, 50), (13, 50), (14, kind.pr), (15, QUORUM), (16, QUORUM)];
    let more = [(17, kind.pw), (18, kind.dw), (19, QUORUM)];
    for (number, value) in numbers.into_iter().chain(more) {
        fields = fields.with_number(number, value);
    }
    fields =
        fields.with_number(20, u64::from(kind.basic_quorum)).with_number(21, u64::from(kind.notfound_ok));
    if default {
        fields = fields.with_number(24, 3);
    }
    if let Some(datatype) = kind.datatype {
        fields = fields.with(26, datatype);
    }
    if kind.consistent {
        fields = fields.with_number(27, 1);
    }
    if kind.write_once || default {
        fields = fields.with_number(28, u64::from(kind.write_once));
    }
    fields
}
