//! `update`: changes in the order of the command line.

use clap::ArgMatches;

use crate::codec::json;
use crate::model::Value;
use crate::model::request::{ChangeKind, ChangeRequest, Request, UpdateRequest};

use super::Session;
use super::args::Update;
use super::output::{Ended, Fault, Output};

/// A change of an operand.
type MakeChange = fn(Value) -> ChangeKind;

/// The flags that are changes with an operand.
const WITH_OPERAND: [(&str, MakeChange); 7] = [
    ("set", ChangeKind::Set),
    ("increment", ChangeKind::Increment),
    ("append", ChangeKind::Append),
    ("min", ChangeKind::Min),
    ("max", ChangeKind::Max),
    ("add_to_set", ChangeKind::AddToSet),
    ("remove_from_set", ChangeKind::RemoveFromSet),
];

pub(super) async fn run(
    session: &Session,
    output: &mut Output,
    update: Update,
    matches: &ArgMatches,
) -> Ended {
    let request = UpdateRequest {
        key: update.key,
        changes: changes(matches)?,
        precondition: update.precondition.request(),
        create: update.create,
        return_record: update.return_record,
        ttl_ms: update.ttl.unwrap_or(0),
        op_id: update.identity.op_id,
        op_age_ms: 0,
    };
    super::data::write(session, output, &update.namespace, Request::Update(request)).await
}

/// The library gathers the values of each flag apart; their places on the command line put them in order.
fn changes(matches: &ArgMatches) -> Result<Vec<ChangeRequest>, Fault> {
    let mut placed: Vec<(usize, ChangeRequest)> = Vec::new();
    for (flag, kind) in WITH_OPERAND {
        for (place, text) in values(matches, flag) {
            placed.push((place, change(flag, text, kind)?));
        }
    }
    for (place, path) in values(matches, "unset") {
        placed.push((place, ChangeRequest { path: path.to_owned(), kind: Ok(ChangeKind::Unset) }));
    }
    placed.sort_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, change)| change).collect())
}

fn values<'m>(matches: &'m ArgMatches, flag: &'static str) -> impl Iterator<Item = (usize, &'m str)> {
    let places = matches.indices_of(flag).into_iter().flatten();
    let texts = matches.get_many::<String>(flag).into_iter().flatten();
    places.zip(texts.map(String::as_str))
}

fn change(flag: &str, text: &str, kind: MakeChange) -> Result<ChangeRequest, Fault> {
    let flag = flag.replace('_', "-");
    let Some((path, operand)) = text.split_once('=') else {
        return Err(Fault::usage(format!("--{flag} {text}: expected PATH=JSON")));
    };
    let operand = json::parse_value(operand.as_bytes()).map_err(|error| {
        let quoted = json::value_to_string(&Value::from(operand), false);
        Fault::usage(format!(
            "--{flag} {text}: the operand is not JSON: {}; text is written '{path}={quoted}'",
            error.message
        ))
    })?;
    Ok(ChangeRequest { path: path.to_owned(), kind: Ok(kind(operand)) })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    fn parse(flags: &[&str]) -> Result<Vec<ChangeRequest>, Fault> {
        let line = [&["datastore", "update", "n", "k"], flags].concat();
        let matches = Cli::command().try_get_matches_from(line).unwrap();
        changes(matches.subcommand().unwrap().1)
    }

    #[test]
    fn changes_keep_the_order_of_the_command_line() {
        let flags = [
            "--set",
            "a=1",
            "--unset",
            "b",
            "--json",
            "--increment=c.d=-2",
            "--set",
            "e={\"x=y\":[]}",
            "--remove-from-set",
            "f=\"g\"",
            "--unset=h",
            "--append",
            "=null",
            "--max",
            "i=1.5",
            "--min",
            "j=0",
            "--add-to-set",
            "k=[]",
        ];
        let found: Vec<(String, &str)> = parse(&flags)
            .unwrap()
            .into_iter()
            .map(|change| (change.path, change.kind.unwrap().word()))
            .collect();
        let expected = [
            ("a", "set"),
            ("b", "unset"),
            ("c.d", "increment"),
            ("e", "set"),
            ("f", "remove_from_set"),
            ("h", "unset"),
            ("", "append"),
            ("i", "max"),
            ("j", "min"),
            ("k", "add_to_set"),
        ];
        assert_eq!(found, expected.map(|(path, word)| (path.to_owned(), word)));
    }

    #[test]
    fn an_operand_that_is_not_json_is_told_how_to_be() {
        let Err(Fault::Told(message, 2)) = parse(&["--set", "name=Ada"]) else { panic!() };
        assert!(message.contains("'name=\"Ada\"'"), "{message}");
        assert!(matches!(parse(&["--increment", "n"]), Err(Fault::Told(_, 2))));
    }
}
