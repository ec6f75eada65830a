//! Every rule of loading, each with a case that breaks it.

use super::*;

fn text(config: &str) -> Result<Loaded, Faults> {
    load(Some((Path::new("test.toml"), config)), [], &[])
}

fn environment(variables: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), &[])
}

/// The faults' paths and messages in one text.
fn faults(config: &str) -> String {
    text(config).expect_err(config).to_string()
}

const BASE: &str = "[backends.main]\nkind = \"memory\"\n[namespaces.\"*\"]\n";

#[test]
fn the_defaults_hold_and_say_what_they_say() {
    let settings = load(None, [], &[]).unwrap().settings;
    assert_eq!(settings.nats.url, "nats://127.0.0.1:4222");
    assert_eq!(settings.max_in_flight, 4096);
    assert_eq!(settings.http.listen.unwrap().to_string(), "127.0.0.1:8280");
    assert_eq!(settings.cache_memory_bytes, 256 << 20);
    assert!(matches!(&settings.backends["main"], backend::Settings::Local { path } if path == Path::new("./data")));
    let policy = &settings.namespaces["*"];
    assert_eq!((policy.ttl_ms, policy.max_staleness_ms, policy.cache_ttl_ms), (0, 1000, 60_000));
    assert_eq!((policy.max_stale_ms, policy.max_value_bytes), (600_000, 8 << 20));
}

#[test]
fn every_key_stands_in_the_default_file_and_every_key_there_is_known() {
    for (pattern, _) in keys::KEYS {
        let key = pattern.rsplit('.').next().unwrap();
        assert!(default_text().contains(&format!("{key} =")), "{pattern} is not documented");
    }
    assert_eq!(keys::walk(&default_text().parse().unwrap()), []);
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let config = format!("[nats]\nurl = \"nats://file:1\"\nsubject_prefix = \"file\"\nmax_in_flight = 7\n{BASE}");
    let environment = [("DATASTORE__NATS__URL".to_owned(), "nats://environment:1".to_owned()), ("OTHER".into(), "x".into()), ("DATASTORE__NATS__SUBJECT_PREFIX".into(), "environment".into())];
    let flags = [("nats.url", "nats://flag:1".to_owned())];
    let settings = load(Some((Path::new("f"), &config)), environment, &flags).unwrap().settings;
    assert_eq!(settings.nats.url, "nats://flag:1");
    assert_eq!(settings.nats.subject_prefix, "environment");
    assert_eq!(settings.max_in_flight, 7);
    assert_eq!(settings.http.listen.unwrap().port(), 8280);
}

#[test]
fn environment_values_take_the_type_of_their_key() {
    let settings = environment(&[("DATASTORE__NATS__MAX_IN_FLIGHT", "9"), ("DATASTORE__NATS__TOKEN", "0123")]).unwrap().settings;
    assert_eq!(settings.max_in_flight, 9);
    assert_eq!(settings.nats.token, "0123", "a password of digits stays text");
    assert!(environment(&[("DATASTORE__NATS__MAX_IN_FLIGHT", "many")]).is_err());
    assert!(environment(&[("DATASTORE__NATZ__URL", "x")]).unwrap_err().to_string().contains("natz"));
}

#[test]
fn default_backends_and_namespaces_stand_only_alone() {
    assert!(faults("[backends.main]\nkind = \"memory\"\n").contains("namespaces: no namespace is named"));
    assert!(faults("[namespaces.a]\n").contains("backends: no backend is named"));
    let settings = text("[backends.x]\n[namespaces.a]\nbackend = \"x\"\nconsistency = \"bounded\"\n").unwrap().settings;
    assert_eq!(settings.namespaces.keys().collect::<Vec<_>>(), ["a"]);
    assert!(matches!(&settings.backends["x"], backend::Settings::Local { path } if path == Path::new("./data")));
    assert_eq!(settings.namespaces["a"].cache_ttl_ms, 60_000, "keys left out keep their defaults");
    let both = text(&format!("{BASE}ttl = \"5s\"\n[namespaces.a]\n")).unwrap().settings;
    assert_eq!((both.namespaces["*"].ttl_ms, both.namespaces["a"].ttl_ms), (5000, 0), "a name inherits nothing from *");
}

#[test]
fn all_faults_are_told_at_once_with_path_and_value() {
    let told = faults(&format!(
        "[nats]\nmax_in_flight = 0\nsubject_prefix = \"a b\"\n[http]\nlisten = \"0.0.0.0:1\"\n[log]\nformat = \"xml\"\n[nonsense]\nx = 1\n{BASE}ttl = \"soon\"\nmaxvalue_bytes = 1\n"
    ));
    for part in [
        "nats.max_in_flight: must be a whole number from 1 to 1000000 (found 0)",
        "nats.subject_prefix: must be subject tokens",
        "http.token: must be set when http.listen (0.0.0.0:1) is not loopback",
        "log.format: must be one of text, json (found \"xml\")",
        "nonsense: unknown key",
        "namespaces.\"*\".ttl: must be a duration such as \"10s\" (found \"soon\")",
        "namespaces.\"*\".maxvalue_bytes: unknown key; did you mean \"max_value_bytes\"?",
    ] {
        assert!(told.contains(part), "{part}\nnot in\n{told}");
    }
}

#[test]
fn each_rule_has_a_case_that_breaks_it() {
    for (config, told) in [
        ("[nats]\nurl = \"\"\n", "nats.url"),
        ("[nats]\nurl = \"http://x\"\n", "nats.url"),
        ("[nats]\nurl = 5\n", "must be text"),
        ("nats = 5\n", "nats: must be a table"),
        ("[nats]\nsubject_prefix = \"\"\n", "nats.subject_prefix"),
        ("[nats]\nsubject_prefix = \"a.*\"\n", "nats.subject_prefix"),
        ("[nats]\ntls_cert_file = \"x\"\n", "goes with nats.tls_key_file"),
        ("[nats]\nuser = \"x\"\n", "goes with nats.password"),
        ("[nats]\nmax_in_flight = 1000001\n", "nats.max_in_flight"),
        ("[http]\nlisten = \"here\"\n", "http.listen"),
        ("[log]\nlevel = \" \"\n", "log.level"),
        ("[cache]\nmemory_bytes = \"much\"\n", "must be a size"),
        ("[cache]\nredis_url = \"redis://x\"\n", "not built yet"),
        ("[queue]\nkind = \"rabbitmq\"\n", "not built yet"),
        ("[queue]\nkind = \"kafka\"\n", "must be one of none, rabbitmq"),
    ] {
        assert!(faults(config).contains(told), "{config}{}", faults(config));
    }
    for (tables, told) in [
        ("[backends.main]\nkind = \"postgres\"\nurl = \"postgres://u:p@h/d\"\n[namespaces.a]\n", "backends.main.kind: is not built yet"),
        ("[backends.main]\nkind = \"memory\"\npath = \"x\"\n[namespaces.a]\n", "backends.main.path: does not belong to a backend of kind \"memory\""),
        ("[backends.main]\nkind = \"local\"\nurl = \"x\"\n[namespaces.a]\n", "does not belong"),
        ("[backends.main]\npath = \"\"\n[namespaces.a]\n", "must be a directory"),
        ("[backends.a]\npath = \"d\"\n[backends.b]\npath = \"./d\"\n[namespaces.a]\nbackend = \"a\"\n", "each needs its own"),
        ("[backends.main]\n[namespaces.A]\n", "bad namespace name"),
        ("[backends.main]\n[namespaces.a]\nbackend = \"other\"\n", "names no backend; there are: main"),
        ("[backends.main]\n[namespaces.a]\ndurability = \"outage_queue\"\n", "not built yet"),
        ("[backends.main]\n[namespaces.a]\ndurability = \"behind\"\n", "is not built"),
        ("[backends.main]\n[namespaces.a]\ncompression = \"zstd\"\n", "not built yet"),
        ("[backends.main]\n[namespaces.a]\npartition_delimiter = \"\"\n", "must not be empty"),
        ("[backends.main]\n[namespaces.a]\nmax_value_bytes = 0\n", "at least 1 byte"),
        ("[backends.main]\n[namespaces.a]\nmax_value_bytes = \"-1\"\n", "must be a size"),
        ("[backends.main]\nshards = [{ name = \"a\", wait = 1 }]\n[namespaces.a]\n", "unknown key"),
    ] {
        assert!(faults(tables).contains(told), "{tables}{}", faults(tables));
    }
}

#[test]
fn strong_where_it_cannot_be_kept_says_so() {
    for kind in ["redis", "riak"] {
        let told = faults(&format!("[backends.main]\nkind = \"{kind}\"\n[namespaces.a]\n"));
        assert!(told.contains("unsupported") && told.contains("strong"), "{told}");
    }
    let told = faults("[backends.main]\n[namespaces.a]\ndurability = \"outage_queue\"\n");
    assert!(told.contains("unsupported") && told.contains("strong"), "{told}");
}

#[test]
fn a_syntax_error_names_line_and_column() {
    let told = faults("[nats]\nurl = \n");
    assert!(told.starts_with("test.toml:2:"), "{told}");
}

#[test]
fn no_secret_is_ever_shown() {
    const SECRET: &str = "hush-hush";
    let config = format!(
        "[nats]\nurl = \"nats://me:{SECRET}@127.0.0.1:1\"\nuser = \"u\"\npassword = \"{SECRET}\"\ntoken = \"{SECRET}\"\n[http]\ntoken = \"{SECRET}\"\n[queue]\nurl = \"amqp://g:{SECRET}@h/v\"\n{BASE}"
    );
    let shown = text(&config).unwrap().show();
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("***@127.0.0.1:1"), "{shown}");
    assert!(shown.parse::<Table>().is_ok(), "what is shown is TOML");
    let told = faults(&format!(
        "[nats]\npassword = [\"{SECRET}\"]\n[cache]\nredis_url = \"redis://:{SECRET}@h\"\n[backends.main]\nkind = \"memory\"\nurl = \"postgres://u:{SECRET}@h\"\n[namespaces.a]\n"
    ));
    assert!(!told.contains(SECRET), "{told}");
    assert!(!format!("{:?}", text(&config).unwrap().settings).contains(SECRET));
}

#[test]
fn sizes_and_durations_are_read_exactly() {
    let size = |text: &str| units::size(&Value::String(text.to_owned()));
    assert_eq!((size("8MiB"), size("1 KiB"), size("2GB"), size("7"), size("7B")), (Some(8 << 20), Some(1024), Some(2_000_000_000), Some(7), Some(7)));
    assert_eq!((size("x"), size("1.5MiB"), size("99999999999GiB"), size("")), (None, None, None, None));
    assert_eq!(units::size(&Value::Integer(-1)), None);
    let duration = |text: &str| units::duration_ms(&Value::String(text.to_owned()));
    assert_eq!((duration("0s"), duration("10m"), duration("1m 5s"), duration("5")), (Some(0), Some(600_000), Some(65_000), None));
}
