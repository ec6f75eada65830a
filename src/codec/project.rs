//! The parts of a document that lie under some paths.

use crate::model::op::Path;
use crate::model::{Map, Value};

/// The parts of a value that lie under the paths, in the value's own order. What does not exist is left
/// out; an index keeps that element alone in its list; a scalar of which only parts were asked gives `{}`.
pub fn project(value: Value, fields: &[Path]) -> Value {
    let paths: Vec<&[String]> = fields.iter().map(Path::steps).collect();
    let nothing = empty(matches!(value, Value::List(_)));
    select(value, &paths).unwrap_or(nothing)
}

/// What is left of a document under none of whose paths there is anything.
pub(super) fn empty(list: bool) -> Value {
    if list { Value::List(Vec::new()) } else { Value::Map(Map::new()) }
}

fn select(value: Value, paths: &[&[String]]) -> Option<Value> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(value);
    }
    match value {
        Value::Map(map) => {
            let mut below = Below::keys(paths);
            let kept: Vec<(String, Value)> = map
                .into_iter()
                .filter_map(|(key, value)| {
                    let selected = select(value, below.take(key.as_str())?)?;
                    Some((key, selected))
                })
                .collect();
            (!kept.is_empty()).then(|| Value::Map(Map::from_distinct(kept)))
        }
        Value::List(items) => {
            let mut below = Below::indexes(paths);
            let kept: Vec<Value> = items
                .into_iter()
                .enumerate()
                .filter_map(|(at, item)| select(item, below.take(at)?))
                .collect();
            (!kept.is_empty()).then_some(Value::List(kept))
        }
        _ => None,
    }
}

/// The rest of every path, by the step it begins with: each path is looked at once, each step found by halving.
pub(super) struct Below<'p, S> {
    /// In ascending order.
    steps: Vec<S>,
    rests: Vec<&'p [String]>,
    /// Paths that were not taken yet.
    left: usize,
}

impl<'p> Below<'p, &'p str> {
    /// Paths into a map.
    pub(super) fn keys(paths: &[&'p [String]]) -> Self {
        Self::new(paths.iter().map(|path| (path[0].as_str(), &path[1..])).collect())
    }
}

impl<'p> Below<'p, usize> {
    /// Paths into a list; those whose step is no index lead nowhere.
    pub(super) fn indexes(paths: &[&'p [String]]) -> Self {
        Self::new(paths.iter().filter_map(|path| Some((index(&path[0])?, &path[1..]))).collect())
    }
}

impl<'p, S: Ord + Copy> Below<'p, S> {
    fn new(mut paths: Vec<(S, &'p [String])>) -> Self {
        paths.sort_by_key(|(step, _)| *step);
        let left = paths.len();
        let (steps, rests) = paths.into_iter().unzip();
        Self { steps, rests, left }
    }

    /// The rest of the paths that begin with a step; each step is taken once.
    pub(super) fn take<Q: Copy>(&mut self, step: Q) -> Option<&[&'p [String]]>
    where
        S: PartialOrd<Q>,
    {
        let first = self.steps.partition_point(|other| *other < step);
        let count = self.steps[first..].iter().take_while(|other| **other == step).count();
        self.left -= count;
        (count > 0).then(|| &self.rests[first..first + count])
    }

    /// Whether every path was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }
}

/// The index that a step is.
pub fn index(step: &str) -> Option<usize> {
    let digits = !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| step.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::{parse_value, value_to_string};

    fn json(text: &str) -> Value {
        parse_value(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_projection_keeps_order_and_leaves_out_what_is_not_there() {
        for (value, fields, kept) in [
            (
                r#"{"a":1,"b":{"c":2,"d":3},"e":[1,{"f":4,"g":5}]}"#,
                vec!["e.1.f", "b.d", "x"],
                r#"{"b":{"d":3},"e":[{"f":4}]}"#,
            ),
            (r#"{"b":2,"a":1}"#, vec!["a", "b"], r#"{"b":2,"a":1}"#),
            (r#"{"a":{"b":1}}"#, vec!["a.x"], r#"{}"#),
            (r#"{"a":1}"#, vec!["a.b"], r#"{}"#),
            (r#"5"#, vec!["a"], r#"{}"#),
            (r#"5"#, vec![""], r#"5"#),
            (r#"[1,2,3]"#, vec!["1"], r#"[2]"#),
            (r#"{"a":{"b":1,"c":2}}"#, vec!["a.b", "a"], r#"{"a":{"b":1,"c":2}}"#),
            (r#"{"0":7}"#, vec!["0"], r#"{"0":7}"#),
        ] {
            let fields: Vec<Path> = fields.into_iter().map(|path| Path::parse(path).unwrap()).collect();
            assert_eq!(value_to_string(&project(json(value), &fields), false), kept, "{value}");
        }
    }
}
