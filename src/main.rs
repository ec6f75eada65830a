//! The `datastore` binary: see `cli`.

fn main() -> std::process::ExitCode {
    datastore::cli::main()
}
