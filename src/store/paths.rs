//! Changing a document by paths.

use crate::codec::project::index;
use crate::model::op::Change;
use crate::model::request::ChangeKind;
use crate::model::value::Map;
use crate::model::{Error, Result, Value};

/// How many elements of lists and maps the changes of one update may look at or move together. It is far above what any
/// document needs, and keeps one small request from holding up every other write.
pub(super) const ELEMENTS_MAX: usize = 16_000_000;

/// What an update has left of [`ELEMENTS_MAX`].
pub(super) struct Work(usize);

impl Work {
    pub(super) fn new() -> Self {
        Self(ELEMENTS_MAX)
    }

    fn on(&mut self, items: usize) -> Result<()> {
        match self.0.checked_sub(items) {
            Some(left) => self.0 = left,
            None => {
                let message =
                    format!("the changes go through more than {ELEMENTS_MAX} elements; split the update");
                return Err(Error::too_large(message));
            }
        }
        Ok(())
    }
}

/// Makes one change. On an error the document may be half changed: the caller drops it.
pub(super) fn change(document: &mut Value, change: &Change, work: &mut Work) -> Result<()> {
    let steps = change.path.steps();
    let fault = |fault: Error| fault.at(&format!("{} at {:?}", change.kind.word(), change.path.to_string()));
    match &change.kind {
        ChangeKind::Set(value) => {
            *make(document, steps, work, || Value::Null).map_err(fault)? = value.clone()
        }
        ChangeKind::Unset => unset(document, steps, work)?,
        ChangeKind::Increment(operand) => {
            let place = make(document, steps, work, || Value::Int(0)).map_err(fault)?;
            *place = sum(place, operand).map_err(fault)?;
        }
        ChangeKind::Append(value) => {
            list(make(document, steps, work, || Value::List(Vec::new())).map_err(fault)?)
                .map_err(fault)?
                .push(value.clone());
        }
        ChangeKind::AddToSet(value) => {
            let items = list(make(document, steps, work, || Value::List(Vec::new())).map_err(fault)?)
                .map_err(fault)?;
            work.on(items.len())?;
            if !items.contains(value) {
                items.push(value.clone());
            }
        }
        ChangeKind::RemoveFromSet(value) => {
            if let Some(place) = find(document, steps) {
                let items = list(place).map_err(fault)?;
                work.on(items.len())?;
                items.retain(|item| item != value);
            }
        }
        ChangeKind::Min(operand) => {
            keep(document, steps, operand, std::cmp::Ordering::Less, work).map_err(fault)?
        }
        ChangeKind::Max(operand) => {
            keep(document, steps, operand, std::cmp::Ordering::Greater, work).map_err(fault)?
        }
    }
    Ok(())
}

/// The place under a path; missing maps on the way are made, a missing key at its end gets `fresh`.
fn make<'v>(
    value: &'v mut Value,
    steps: &[String],
    work: &mut Work,
    fresh: impl FnOnce() -> Value,
) -> Result<&'v mut Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Ok(value);
    };
    match value {
        Value::Map(map) => {
            // A key is found by going through the map.
            work.on(map.len())?;
            if rest.is_empty() {
                return Ok(map.get_or_insert_with(step, fresh));
            }
            make(map.get_or_insert_with(step, || Value::Map(Map::new())), rest, work, fresh)
        }
        Value::List(items) => {
            let length = items.len();
            let item = index(step).and_then(|at| items.get_mut(at));
            make(item.ok_or_else(|| no_element(step, length))?, rest, work, fresh)
        }
        scalar => {
            Err(Error::invalid(format!("step {step:?} leads into a value of type {}", scalar.type_name())))
        }
    }
}

/// The place under a path, if it leads anywhere.
fn find<'v>(value: &'v mut Value, steps: &[String]) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |value, step| match value {
        Value::Map(map) => map.get_mut(step),
        Value::List(items) => items.get_mut(index(step)?),
        _ => None,
    })
}

fn unset(document: &mut Value, steps: &[String], work: &mut Work) -> Result<()> {
    let Some((last, way)) = steps.split_last() else {
        *document = Value::Null;
        return Ok(());
    };
    match find(document, way) {
        Some(Value::Map(map)) => {
            work.on(map.len())?;
            map.remove(last);
        }
        Some(Value::List(items)) => {
            work.on(items.len())?;
            if let Some(at) = index(last).filter(|at| *at < items.len()) {
                items.remove(at);
            }
        }
        _ => {}
    }
    Ok(())
}

fn keep(
    document: &mut Value,
    steps: &[String],
    operand: &Value,
    wanted: std::cmp::Ordering,
    work: &mut Work,
) -> Result<()> {
    let place = make(document, steps, work, || operand.clone())?;
    if compare(operand, place)? == wanted {
        *place = operand.clone();
    }
    Ok(())
}

fn list(place: &mut Value) -> Result<&mut Vec<Value>> {
    match place {
        Value::List(items) => Ok(items),
        other => Err(Error::invalid(format!("a list is needed there, found {}", other.type_name()))),
    }
}

fn sum(present: &Value, operand: &Value) -> Result<Value> {
    #[expect(clippy::cast_precision_loss, reason = "integer plus float is a float, as the contract says")]
    let float = |number: i64| number as f64;
    match (present, operand) {
        (Value::Int(a), Value::Int(b)) => a
            .checked_add(*b)
            .map(Value::Int)
            .ok_or_else(|| Error::invalid(format!("{a} + {b} overflows an integer"))),
        (Value::Int(a), Value::Float(b)) => Ok(Value::Float(float(*a) + b)),
        (Value::Float(a), Value::Int(b)) => Ok(Value::Float(a + float(*b))),
        (Value::Float(a), Value::Float(b)) => Ok(Value::Float(a + b)),
        (a, b) => {
            Err(Error::invalid(format!("numbers are needed, found {} and {}", a.type_name(), b.type_name())))
        }
    }
}

/// Numbers with numbers, text with text by its bytes, time with time. NaN has no place in an order.
fn compare(a: &Value, b: &Value) -> Result<std::cmp::Ordering> {
    let order = match (a, b) {
        (Value::Int(a), Value::Int(b)) | (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Float(b)) => compare_mixed(*a, *b),
        (Value::Float(a), Value::Int(b)) => compare_mixed(*b, *a).map(std::cmp::Ordering::reverse),
        (Value::Text(a), Value::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        _ => {
            let (a, b) = (a.type_name(), b.type_name());
            return Err(Error::invalid(format!("{a} and {b} cannot be compared")));
        }
    };
    order.ok_or_else(|| Error::invalid("NaN cannot be compared"))
}

/// Compares exactly: an integer is not rounded to a float first.
fn compare_mixed(int: i64, float: f64) -> Option<std::cmp::Ordering> {
    // 2^63: the first float above every integer. Its negation is the smallest integer itself.
    const ABOVE: f64 = 9_223_372_036_854_775_808.0;
    if float.is_nan() {
        return None;
    }
    if float >= ABOVE {
        return Some(std::cmp::Ordering::Less);
    }
    if float < -ABOVE {
        return Some(std::cmp::Ordering::Greater);
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked to be in range, and whole")]
    let whole = float.trunc() as i64;
    Some(int.cmp(&whole).then(0.0_f64.partial_cmp(&float.fract())?))
}

fn no_element(step: &str, length: usize) -> Error {
    Error::invalid(format!("step {step:?} is no element of a list of {length}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::{parse_value, value_to_string};
    use crate::model::op::Path;

    fn changed(before: &str, path: &str, kind: ChangeKind) -> Result<String> {
        let mut document = parse_value(before.as_bytes()).unwrap();
        change(&mut document, &Change { path: Path::parse(path).unwrap(), kind }, &mut Work::new())?;
        Ok(value_to_string(&document, false))
    }

    fn json(text: &str) -> Value {
        parse_value(text.as_bytes()).unwrap()
    }

    #[test]
    fn changes_do_what_the_contract_says() {
        use ChangeKind::*;
        for (before, path, kind, after) in [
            (r#"{}"#, "a.b", Set(json("1")), r#"{"a":{"b":1}}"#),
            (r#"{"a":[1,2]}"#, "a.1", Set(json("9")), r#"{"a":[1,9]}"#),
            (r#"{"a":1}"#, "", Set(json("[]")), "[]"),
            (r#"{"a":1,"b":2}"#, "a", Unset, r#"{"b":2}"#),
            (r#"{"a":[1,2,3]}"#, "a.1", Unset, r#"{"a":[1,3]}"#),
            (r#"{"a":1}"#, "a.b.c", Unset, r#"{"a":1}"#),
            (r#"{"a":[1]}"#, "a.5", Unset, r#"{"a":[1]}"#),
            (r#"{"a":1}"#, "", Unset, "null"),
            (r#"{}"#, "n", Increment(json("2")), r#"{"n":2}"#),
            (r#"{"n":1}"#, "n", Increment(json("0.5")), r#"{"n":1.5}"#),
            (r#"{"n":1.5}"#, "n", Increment(json("1")), r#"{"n":2.5}"#),
            (r#"{}"#, "l", Append(json("[1]")), r#"{"l":[[1]]}"#),
            (r#"{"l":[1]}"#, "l", AddToSet(json("1")), r#"{"l":[1]}"#),
            (r#"{"l":[1]}"#, "l", AddToSet(json("1.0")), r#"{"l":[1,1.0]}"#),
            (
                r#"{"l":[{"a":1,"b":2}]}"#,
                "l",
                AddToSet(json(r#"{"b":2,"a":1}"#)),
                r#"{"l":[{"a":1,"b":2},{"b":2,"a":1}]}"#,
            ),
            (r#"{"l":[1,2,1]}"#, "l", RemoveFromSet(json("1")), r#"{"l":[2]}"#),
            (r#"{}"#, "l", RemoveFromSet(json("1")), r#"{}"#),
            (r#"{}"#, "m", Min(json("5")), r#"{"m":5}"#),
            (r#"{"m":5}"#, "m", Min(json("4.5")), r#"{"m":4.5}"#),
            (r#"{"m":9007199254740993}"#, "m", Max(json("9007199254740992.0")), r#"{"m":9007199254740993}"#),
            (r#"{"m":"b"}"#, "m", Max(json(r#""a""#)), r#"{"m":"b"}"#),
            (r#"{"a.b":1}"#, r"a\.b", Increment(json("1")), r#"{"a.b":2}"#),
        ] {
            assert_eq!(changed(before, path, kind.clone()).unwrap(), after, "{before} {path} {kind:?}");
        }
    }

    #[test]
    fn changes_that_cannot_be_made_are_refused() {
        use ChangeKind::*;
        for (before, path, kind) in [
            (r#"{"a":[1]}"#, "a.1", Set(json("1"))),
            (r#"{"a":[1]}"#, "a.x", Set(json("1"))),
            (r#"{"a":1}"#, "a.b", Set(json("1"))),
            (r#"{"a":null}"#, "a.b", Set(json("1"))),
            (r#"{"a":"x"}"#, "a", Increment(json("1"))),
            (r#"{"a":1}"#, "a", Increment(json(r#""1""#))),
            (r#"{"a":9223372036854775807}"#, "a", Increment(json("1"))),
            (r#"{"a":1}"#, "a", Append(json("1"))),
            (r#"{"a":1}"#, "a", RemoveFromSet(json("1"))),
            (r#"{"a":1}"#, "a", Max(json(r#""1""#))),
            (r#"{"a":true}"#, "a", Min(json("true"))),
        ] {
            let error = changed(before, path, kind.clone()).unwrap_err();
            assert_eq!(error.code, crate::model::Code::InvalidArgument, "{before} {path} {kind:?}");
        }
    }

    #[test]
    fn an_update_cannot_go_through_lists_without_end() {
        let mut document = Value::List(vec![Value::Int(0); ELEMENTS_MAX / 4]);
        let unset = Change { path: Path::parse("0").unwrap(), kind: ChangeKind::Unset };
        let mut work = Work::new();
        for _ in 0..4 {
            change(&mut document, &unset, &mut work).unwrap();
        }
        assert_eq!(change(&mut document, &unset, &mut work).unwrap_err().code, crate::model::Code::TooLarge);
    }
}
