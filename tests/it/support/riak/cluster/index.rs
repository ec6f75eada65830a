//! Index queries: of keys, of all keys, and of the terms that contents were put with.

use std::collections::BTreeSet;

use super::super::fields::Fields;
use super::super::object::Object;
use super::Answer::{Crash, Reply};
use super::{Answer, At, Cluster, Health, says};

impl Cluster {
    pub(super) fn index(&mut self, node: usize, fields: &Fields) -> Answer {
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
    pub(super) fn keys(
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
    pub(super) fn objects(&self, name: &str, bucket: &[u8]) -> Vec<(Vec<u8>, Object)> {
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
}

/// A term of an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Term {
    Number(i64),
    Text(Vec<u8>),
}

impl Term {
    pub(super) fn read(bytes: &[u8], integers: bool) -> Option<Term> {
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
