//! The `datastore` binary.

use std::path::Path;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let file = match (arguments.next().as_deref(), arguments.next().as_deref(), arguments.next()) {
        (Some("serve"), Some("--config"), Some(file)) => file,
        _ => return ExitCode::from(2),
    };
    let Ok(text) = std::fs::read_to_string(&file) else { return ExitCode::from(2) };
    match datastore::config::load(Some((Path::new(&file), &text)), std::env::vars(), &[]) {
        Ok(loaded) => datastore::app::serve(loaded).await,
        Err(_) => ExitCode::FAILURE,
    }
}
