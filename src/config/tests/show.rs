//! What is shown, and that no secret ever is.

use proptest::prelude::*;

use super::*;
use crate::config::keys::Hides;

#[test]
fn what_is_shown_is_stable_and_loads_again_to_the_same() {
    let file = "[log]\nlevel = 'debug'\n[namespaces.b]\nttl = '5s'\n[namespaces.a]\n[backends.main]\npath = 'd'\n[nats]\nmax_in_flight = 3";
    let shown = load_all(file, &[], &[]).unwrap().show();
    let again = load_all(&shown, &[], &[]).unwrap();
    assert_eq!(again.show(), shown);
    assert_eq!((again.settings.max_in_flight, again.settings.namespaces["b"].ttl_ms), (3, 5000));
    let sections: Vec<_> = shown.lines().filter(|line| line.starts_with('[')).collect();
    let expected = [
        "[nats]",
        "[http]",
        "[log]",
        "[queue]",
        "[cache]",
        "[backends.main]",
        "[namespaces.a]",
        "[namespaces.b]",
    ];
    assert_eq!(sections, expected);
    assert!(
        shown.starts_with("[nats]\nurl = \"nats://127.0.0.1:4222\"\ncredentials_file = \"\"\n"),
        "{shown}"
    );
    assert!(
        !shown.contains('#')
            && shown.contains("\npassword = \"\"\n")
            && shown.contains("amqp://***@127.0.0.1")
    );
    assert_eq!(format!("{again:?}"), shown);
}

/// A table at the place of `path` that holds `value`, in a file that is right otherwise.
fn file_with(path: &str, value: Value) -> String {
    let steps: Vec<&str> = path.split('.').collect();
    let tree = steps.iter().enumerate().rev().fold(value, |below, (at, step)| match *step {
        // Below `shards` a list stands in place of a name.
        "*" if at > 1 => Value::Array(vec![below]),
        step => Value::Table([(step.replace('*', "main"), below)].into_iter().collect()),
    });
    tree.as_table().unwrap().to_string()
}

proptest! {
    // Each case loads some sixty files.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Neither what is shown nor what is refused holds a secret: of no key, however the secret looks, and also
    /// where a value is wrong, is of a wrong type, or stands below a misspelt key.
    #[test]
    fn no_secret_is_ever_printed(body in "[a-zA-Z0-9,:/?#@&=%! '\"\\\\$]{0,12}") {
        let secret = format!("Zq7{body}Xw9");
        let login = format!("postgres://user:{secret}@host/place");
        let mut shown = 0;
        for key in KEYS.iter().filter(|key| key.hides != Hides::Nothing) {
            let text = match (key.hides, key.path) {
                (Hides::All, _) => secret.clone(),
                (_, "nats.url") => format!("nats://a:1,nats://user:{secret}@host,nats://{secret}@c"),
                _ => login.clone(),
            };
            let text = Value::String(text);
            let misspelt = format!("{}x", key.path);
            let cases = [
                file_with(key.path, text.clone()),
                file_with(key.path, Value::Array(vec![text.clone(), Value::Integer(1)])),
                file_with(key.path, Value::Table([("x".to_owned(), text.clone())].into_iter().collect())),
                file_with(&misspelt, text.clone()),
                file_with(key.path.rsplit_once('.').unwrap().0, text),
            ];
            for file in cases {
                let printed = match load_all(&file, &[("DATASTORE__NATS__USER", "u")], &[]) {
                    Ok(loaded) => { shown += 1; format!("{}{:?}", loaded.show(), loaded.settings) }
                    Err(faults) => format!("{faults}\n{faults:?}"),
                };
                prop_assert!(!printed.contains("Zq7") && !printed.contains("Xw9"), "{}\n{}", file, printed);
            }
        }
        prop_assert!(shown >= 3, "password, token and token load: {}", shown);
    }

    /// Whatever stands in a file or a variable is settings or faults, never a panic.
    #[test]
    fn nothing_panics(text in "\\PC{0,80}", name in "[A-Z_]{0,20}", at in 0..KEYS.len()) {
        let _ = load_all(&text, &[(&format!("DATASTORE__{name}"), &text)], &[]);
        let path = KEYS[at].path.replace('*', "main");
        let _ = load_all(NAMED, &[], &[(&path, &text)]);
        let _ = load_all(&file_with(KEYS[at].path, Value::String(text)), &[], &[]);
    }
}
