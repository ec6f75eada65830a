//! Layers: which of flags, environment, file and defaults wins, and how each is read.

use super::*;

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = "[nats]\nurl = 'nats://file'\nsubject_prefix = 'file'\nmax_in_flight = 7\n";
    let environment = [
        ("DATASTORE__NATS__URL", "nats://environment"),
        ("DATASTORE__NATS__SUBJECT_PREFIX", "environment"),
        ("DATASTORE_NATS__URL", "nats://no"),
        ("datastore__nats__url", "nats://no"),
        ("PATH", "/bin"),
    ];
    let settings = load_all(file, &environment, &[("nats.url", "nats://flag")]).unwrap().settings;
    assert_eq!(
        (settings.nats.url.as_str(), settings.nats.subject_prefix.as_str()),
        ("nats://flag", "environment")
    );
    assert_eq!((settings.max_in_flight, settings.log.level.as_str()), (7, "info"));
}

#[test]
fn environment_values_take_the_type_of_their_key() {
    let environment = [
        ("DATASTORE__NATS__PASSWORD", "12345"),
        ("DATASTORE__NATS__TOKEN", "true"),
        ("DATASTORE__NATS__MAX_IN_FLIGHT", "12"),
        ("DATASTORE__CACHE__MEMORY_BYTES", "0"),
        ("DATASTORE__HTTP__LISTEN", ""),
        ("DATASTORE__LOG__FORMAT", "json"),
    ];
    let settings =
        load_all("[nats]\nuser = 'u'", &environment, &[("cache.memory_bytes", "1KiB")]).unwrap().settings;
    assert_eq!((settings.nats.password.as_str(), settings.nats.token.as_str()), ("12345", "true"));
    assert_eq!((settings.max_in_flight, settings.cache.memory_bytes), (12, 1024));
    assert_eq!((settings.http.listen, settings.log.format), (None, LogFormat::Json));
}

#[test]
fn environment_lists_are_comma_separated() {
    let list = |text| {
        let environment =
            [("DATASTORE__BACKENDS__MAIN__KIND", "riak"), ("DATASTORE__BACKENDS__MAIN__HOSTS", text)];
        load_all("[namespaces.a]\nconsistency = 'eventual'", &environment, &[])
    };
    let backend::Settings::Riak(riak) = list("a:1, b:2").unwrap().settings.backends["main"].clone() else {
        panic!()
    };
    assert_eq!(riak.hosts, ["a:1", "b:2"]);
    assert_eq!(list("a:1,,b:2").unwrap_err().0[0].path, "backends.main.hosts[1]");
    let shards = load_all(NAMED, &[("DATASTORE__BACKENDS__MAIN__SHARDS", "a,b")], &[]).unwrap_err().0;
    assert_eq!(shards.len(), 1);
    assert!(shards[0].message.contains("only a file can set"));
}

#[test]
fn a_fault_from_the_environment_or_a_flag_names_it() {
    let environment = [
        ("DATASTORE__NATS__MAX_IN_FLIGHT", "many"),
        ("DATASTORE__NATS__PASWORD", "hunter2"),
        ("DATASTORE__LOG", "x"),
        ("DATASTORE__LOG__LEVEL", "info"),
        ("DATASTORE__", "y"),
    ];
    let faults = load_all("", &environment, &[("http.listen", "nowhere")]).unwrap_err();
    let text = faults.to_string();
    for line in [
        "nats.max_in_flight: should be a whole number from 1 to 1000000 [DATASTORE__NATS__MAX_IN_FLIGHT] (found \"many\")",
        "nats.pasword: unknown key; did you mean \"password\"? [DATASTORE__NATS__PASWORD]",
        "log: should be a table [DATASTORE__LOG] (found text)",
        "log.level: is set both as a table and as a value [DATASTORE__LOG__LEVEL]",
        "[flag http.listen] (found \"nowhere\")",
    ] {
        assert!(text.contains(line), "{line}\n--- is not in\n{text}");
    }
    assert_eq!(faults.0.len(), 6, "{text}");
    assert!(!text.contains("hunter2"));
    let twice = [("DATASTORE__NATS__URL", "nats://a"), ("DATASTORE__nats__url", "nats://b")];
    assert!(load_all("", &twice, &[]).unwrap_err().to_string().contains("set twice"));
}

#[test]
fn a_syntax_error_is_one_fault_with_its_place() {
    let fault = refused(
        "[nats]\nurl = 'nats://a'\npassword = hunter2\n[nonsense]\n",
        "test.toml",
        &["line 3, column 12"],
    );
    assert!(!fault.to_string().contains("hunter2"), "{fault}");
    refused("[nats]\nurl = 'a'\nurl = 'b'", "test.toml", &["line 3, column 1", "duplicate"]);
    refused("[nats", "test.toml", &["line 1, column"]);
}
