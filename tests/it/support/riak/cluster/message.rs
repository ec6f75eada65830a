//! What is said in answers, and what is wrong with requests.

use super::super::fields::Fields;
use super::super::object::Object;
use super::index::Term;
use super::{Answer, BucketType, QUORUM, says};

pub(super) fn unknown(code: u8) -> String {
    match code {
        255 => "Security not enabled; STARTTLS not allowed.".to_owned(),
        code => format!("Unknown message code: {code}"),
    }
}

pub(super) fn empty(parts: &[(&str, Option<&[u8]>)]) -> Option<Answer> {
    let empty = parts.iter().find(|(_, part)| part.is_some_and(<[u8]>::is_empty))?;
    Some(says(format!("{} cannot be zero-length", empty.0)))
}

pub(super) fn bad_index(content: &Fields) -> Option<Answer> {
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
pub(super) fn contents(object: &Object, head: bool) -> Fields {
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

pub(super) fn properties(kind: &BucketType, default: bool) -> Fields {
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
