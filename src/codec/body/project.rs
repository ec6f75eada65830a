//! Reading parts of a body: what lies beside a path is stepped over by its length.

use bytes::Bytes;

use super::Result;
use super::read::{Head, Reader, check_end, malformed, too_deep};
use crate::codec::project::{Below, empty};
use crate::model::limits::DEPTH_MAX;
use crate::model::op::Path;
use crate::model::{Map, Value};

pub(super) fn project(body: &Bytes, fields: &[Path]) -> Result<Value> {
    let mut reader = Reader::new(body);
    let paths: Vec<&[String]> = fields.iter().map(Path::steps).collect();
    let root = reader.head(&mut 0, reader.len())?;
    let mut at = 0;
    let selected = select(&mut reader, &mut at, body.len(), &paths, DEPTH_MAX)?;
    // What is read whole is judged whole.
    if paths.iter().any(|path| path.is_empty()) && at != body.len() {
        return Err(malformed(at, "bytes after the document"));
    }
    Ok(selected.unwrap_or_else(|| empty(matches!(root, Head::List(_)))))
}

/// What the paths choose of the value at `at`, which moves behind it. Once every path has been followed, the rest of
/// a list or map is not looked at.
fn select(
    reader: &mut Reader<'_>,
    at: &mut usize,
    end: usize,
    paths: &[&[String]],
    levels_left: usize,
) -> Result<Option<Value>> {
    if paths.iter().any(|path| path.is_empty()) {
        let mut value = Value::Null;
        reader.value(at, end, levels_left, &mut value)?;
        return Ok(Some(value));
    }
    let start = *at;
    match reader.head(at, end)? {
        Head::List(_) | Head::Map(_) if levels_left == 0 => Err(too_deep(start)),
        Head::Map(layout) => {
            let (keys, mut at) = reader.shape(&layout)?;
            let end = layout.values.end;
            let mut below = Below::keys(paths);
            let mut kept = Vec::new();
            for key in keys {
                let key = reader.key(key);
                let Some(paths) = below.take(key) else {
                    reader.head(&mut at, end)?;
                    continue;
                };
                if let Some(value) = select(reader, &mut at, end, paths, levels_left - 1)? {
                    kept.push((key.to_owned(), value));
                }
                if below.is_empty() {
                    return Ok((!kept.is_empty()).then(|| Value::Map(Map::from_distinct(kept))));
                }
            }
            check_end(at, end)?;
            Ok((!kept.is_empty()).then(|| Value::Map(Map::from_distinct(kept))))
        }
        Head::List(range) => {
            let mut below = Below::indexes(paths);
            let mut kept = Vec::new();
            let (mut at, mut index) = (range.start, 0_usize);
            while at < range.end && !below.is_empty() {
                match below.take(index) {
                    None => {
                        reader.head(&mut at, range.end)?;
                    }
                    Some(paths) => kept.extend(select(reader, &mut at, range.end, paths, levels_left - 1)?),
                }
                index += 1;
            }
            Ok((!kept.is_empty()).then_some(Value::List(kept)))
        }
        _ => Ok(None),
    }
}
