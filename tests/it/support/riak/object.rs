//! An object of one replica: its contents, each with the event that made it, and the clock of all events it has seen.
//!
//! Clocks are written as Riak writes them: an Erlang term, deflated. So a clock that is none is found out as Riak does.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::fields::Fields;

/// For each replica that coordinated writes: how many, and when the last, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(pub(crate) BTreeMap<Vec<u8>, (u64, u64)>);

/// A write: the replica that coordinated it, and which of its writes it was.
pub(crate) type Dot = (Vec<u8>, u64);

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) dot: Dot,
    pub(crate) value: Vec<u8>,
    /// Fields 2 to 4, 6, 9 and 10 of the message, as they were sent.
    pub(crate) meta: Fields,
    pub(crate) vtag: String,
    /// The coordinator's clock, microseconds.
    pub(crate) modified_us: u64,
    pub(crate) deleted: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object {
    pub(crate) clock: Clock,
    pub(crate) contents: Vec<Content>,
}

/// How a bucket type resolves writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `allow_mult = true`, with a dot for each content.
    Siblings,
    /// The same without dots: a write that did not see all keeps all.
    Ancestors,
    /// `allow_mult = false`: the latest by the nodes' clocks.
    Latest,
    /// `last_write_wins = true`.
    LastWriter,
}

impl Clock {
    /// Reads a clock; `None` where Riak's own reading fails.
    pub(crate) fn read(bytes: &[u8]) -> Option<Clock> {
        if bytes.is_empty() {
            return Some(Clock::default());
        }
        let mut term = Vec::new();
        DeflateDecoder::new(bytes).read_to_end(&mut term).ok()?;
        let mut term = &term[..];
        let mut clock = Clock::default();
        expect(&mut term, &[131])?;
        if term == [106] {
            return Some(clock);
        }
        expect(&mut term, &[108])?;
        for _ in 0..be(&mut term, 4)? {
            expect(&mut term, &[104, 2, 109])?;
            let length = usize::try_from(be(&mut term, 4)?).ok()?;
            let (actor, rest) = term.split_at_checked(length)?;
            term = rest;
            expect(&mut term, &[104, 2])?;
            let count = integer(&mut term)?;
            clock.0.insert(actor.to_vec(), (count, integer(&mut term)?));
        }
        (term == [106]).then_some(clock)
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut term = vec![131];
        if !self.0.is_empty() {
            term.push(108);
            term.extend_from_slice(&u32::try_from(self.0.len()).unwrap().to_be_bytes());
            for (actor, (count, at)) in &self.0 {
                term.extend_from_slice(&[104, 2, 109]);
                term.extend_from_slice(&u32::try_from(actor.len()).unwrap().to_be_bytes());
                term.extend_from_slice(actor);
                term.extend_from_slice(&[104, 2]);
                put_integer(&mut term, *count);
                put_integer(&mut term, *at);
            }
        }
        term.push(106);
        let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
        deflated.write_all(&term).unwrap();
        deflated.finish().unwrap()
    }

    fn count(&self, actor: &[u8]) -> u64 {
        self.0.get(actor).map_or(0, |(count, _)| *count)
    }

    /// Whether it has seen an event.
    pub(crate) fn covers(&self, (actor, count): &Dot) -> bool {
        self.count(actor) >= *count
    }

    /// Whether it has seen all that another has.
    pub(crate) fn descends(&self, other: &Clock) -> bool {
        other.0.iter().all(|(actor, (count, _))| self.count(actor) >= *count)
    }

    fn merge(&mut self, other: &Clock) {
        for (actor, event) in &other.0 {
            let known = self.0.entry(actor.clone()).or_insert(*event);
            *known = (*known).max(*event);
        }
    }

    fn tick(&mut self, actor: &[u8], at: u64) -> Dot {
        let count = self.count(actor) + 1;
        self.0.insert(actor.to_vec(), (count, at));
        (actor.to_vec(), count)
    }
}

impl Object {
    /// Whether it stands for a key that is gone.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.contents.iter().all(|content| content.deleted)
    }

    /// The object after a write that was sent with a clock.
    pub(crate) fn put(&self, rule: Rule, seen: &Clock, actor: &[u8], mut content: Content) -> Object {
        let at = content.modified_us / 1_000_000;
        let mut clock = if rule == Rule::LastWriter { seen.clone() } else { self.clock.clone() };
        clock.merge(seen);
        content.dot = clock.tick(actor, at);
        let survives = |old: &&Content| match rule {
            Rule::Siblings | Rule::Latest => !seen.covers(&old.dot),
            Rule::Ancestors => !seen.descends(&self.clock),
            Rule::LastWriter => false,
        };
        let mut contents: Vec<_> = self.contents.iter().filter(survives).cloned().collect();
        contents.push(content);
        let mut object = Object { clock, contents };
        object.resolve(rule);
        object
    }

    /// Both replicas' state as one.
    pub(crate) fn merged(&self, other: &Object, rule: Rule) -> Object {
        if rule == Rule::LastWriter || rule == Rule::Ancestors {
            let newer = |object: &Object| object.contents.iter().map(|content| content.modified_us).max();
            return if newer(self) >= newer(other) { self.clone() } else { other.clone() };
        }
        // What one has and the other has seen and has no more was replaced there.
        let stays = |content: &&Content, there: &Object| {
            !there.clock.covers(&content.dot) || there.contents.iter().any(|each| each.dot == content.dot)
        };
        let mut contents: Vec<_> = self.contents.iter().filter(|each| stays(each, other)).cloned().collect();
        for content in other.contents.iter().filter(|each| stays(each, self)) {
            if !contents.iter().any(|each| each.dot == content.dot) {
                contents.push(content.clone());
            }
        }
        let mut clock = self.clock.clone();
        clock.merge(&other.clock);
        let mut object = Object { clock, contents };
        object.resolve(rule);
        object
    }

    fn resolve(&mut self, rule: Rule) {
        if rule == Rule::Latest && self.contents.len() > 1 {
            let latest = self.contents.iter().max_by_key(|content| (content.modified_us, !content.deleted));
            self.contents = latest.cloned().into_iter().collect();
        }
    }
}

fn expect(term: &mut &[u8], bytes: &[u8]) -> Option<()> {
    *term = term.strip_prefix(bytes)?;
    Some(())
}

fn be(term: &mut &[u8], bytes: usize) -> Option<u64> {
    let (number, rest) = term.split_at_checked(bytes)?;
    *term = rest;
    Some(number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A small, a 32-bit or a big integer.
fn integer(term: &mut &[u8]) -> Option<u64> {
    match be(term, 1)? {
        97 => be(term, 1),
        98 => be(term, 4),
        110 => {
            let length = usize::try_from(be(term, 1)?).ok().filter(|length| *length <= 8)?;
            expect(term, &[0])?;
            let (digits, rest) = term.split_at_checked(length)?;
            *term = rest;
            Some(digits.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        }
        _ => None,
    }
}

fn put_integer(term: &mut Vec<u8>, number: u64) {
    match number {
        0..256 => term.extend_from_slice(&[97, number as u8]),
        256..0x8000_0000 => {
            term.push(98);
            term.extend_from_slice(&(number as u32).to_be_bytes());
        }
        _ => {
            let digits = number.to_le_bytes();
            let length = 8 - number.leading_zeros() as usize / 8;
            term.extend_from_slice(&[110, length as u8, 0]);
            term.extend_from_slice(&digits[..length]);
        }
    }
}
