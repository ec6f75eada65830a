//! The command line: one binary for the worker and for those who use it.
//!
//! Exit codes: 0 success; 1 the operation failed (a `get` of a missing key too); 2 wrong usage; 130 stopped by
//! Ctrl-C after the batch in hand. Results go to standard output, everything else to standard error; a failure is
//! one line there that says what, and whether to retry.
//!
//! What the command line itself says wrong (a flag, a duration, a VALUE that is no JSON) is 2; what an input
//! holds or a worker answers is 1.

mod args;
mod batch;
mod bench;
mod data;
mod output;
mod queue;
mod record;
mod record_file;
mod settings;
mod transfer;
mod update;
mod warm;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::app;
use crate::client::{Client, NamespaceClient, RequestOptions};
use crate::model::Namespace;

use args::{Cli, Command, Connection};
use output::{Ended, Fault, Output};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(message) => return usage(&message),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(message) => return usage(&message),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::end(Err(Fault::from(error))),
    };
    let ended = runtime.block_on(run(cli, &matches));
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    output::end(ended)
}

/// Help and version are no failures: the library knows which of its messages are.
fn usage(message: &clap::Error) -> ExitCode {
    drop(message.print());
    ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(output::USAGE))
}

async fn run(cli: Cli, matches: &ArgMatches) -> Ended {
    let session = Session { connection: cli.connection };
    let mut output = Output::new(session.connection.json);
    match cli.command {
        Command::Serve(serve) => {
            let loaded = settings::load(serve.config.as_deref(), &session.connection)?;
            Ok(app::serve(loaded).await)
        }
        Command::Get(get) => data::get(&session, &mut output, get).await,
        Command::Put(put) => data::put(&session, &mut output, put).await,
        Command::Delete(delete) => data::delete(&session, &mut output, delete).await,
        Command::Update(arguments) => {
            let (_, matches) = matches.subcommand().expect("a command was parsed");
            update::run(&session, &mut output, arguments, matches).await
        }
        Command::Touch(touch) => data::touch(&session, &mut output, touch).await,
        Command::Batch(arguments) => batch::run(&session, &mut output, &arguments).await,
        Command::Scan(scan) => data::scan(&session, &mut output, scan).await,
        Command::Import(file) => transfer::import(&session, &mut output, &file).await,
        Command::Export(file) => transfer::export(&session, &mut output, &file).await,
        Command::Queue(arguments) => queue::run(&session, &mut output, arguments.command).await,
        Command::Warm(arguments) => warm::run(&session, &mut output, &arguments).await,
        Command::Encode(arguments) => record::encode(&mut output, &arguments),
        Command::Decode(arguments) => record::decode(&mut output, &arguments),
        Command::Config(config) => settings::run(&session.connection, &mut output, config.command),
        Command::Bench(arguments) => bench::run(&session, &mut output, arguments).await,
        Command::BenchEcho(echo) => bench::echo::respond(&session, &echo.subject).await,
    }
}

/// What every command that talks to workers needs.
pub(crate) struct Session {
    connection: Connection,
}

impl Session {
    async fn client(&self) -> Result<Client, Fault> {
        let nats = settings::client(&self.connection)?.settings.nats;
        Ok(Client::connect_within(&nats, self.connection.timeout).await?)
    }

    async fn namespace(&self, name: &str) -> Result<NamespaceClient, Fault> {
        // A bad name is told before a server is needed.
        Namespace::parse(name)?;
        self.namespace_of(&self.client().await?, name)
    }

    fn namespace_of(&self, client: &Client, name: &str) -> Result<NamespaceClient, Fault> {
        Ok(client.namespace(name)?.with_options(RequestOptions::within(self.connection.timeout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
